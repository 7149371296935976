"""The state actions in a plan's prediction: seconds and bytes of gathers and sums, for each kind of action.

They are parts of the seconds and bytes that the prediction has anyway. So no search computes them: a plan gets them once
it is found, and `verify` computes them again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.activations.best_policies import totals_with_policies
from autopart.activations.policies import StagePolicies
from autopart.cost.chosen_groups import chosen_variant, unsharded_variant
from autopart.cost.groups_as_ranks import layers_of_group
from autopart.cost.sharded_state import Whole, sharded_layers
from autopart.cost.stage_totals import StageTotals
from autopart.cost.state_messages import ActionMessages, Messages, StateMessageTimes
from autopart.records.cluster import Cluster
from autopart.records.group_choice import load_of
from autopart.records.layouts import Layout, Partition
from autopart.records.prediction import Prediction, StateActions, StateMessages
from autopart.records.problem import Problem
from autopart.records.profile import Profile
from autopart.records.rank_group import Group, MaybeGroup


class RankState(NamedTuple):
    """What the GPUs of a rank share, and from which figures they are priced."""

    profile: Profile
    """The profile at the samples of each GPU."""
    group: MaybeGroup
    cluster: Cluster
    """The cluster of single GPUs."""


def with_state_actions(
    prediction: Prediction,
    state: RankState,
    problem: Problem,
    layout: Layout,
    partition: Partition,
    policies: Sequence[StagePolicies],
) -> Prediction:
    """The prediction with the state actions of each stage; itself where GPUs share no state.

    `problem` is the one whose ranks are groups.
    """
    group = state.group
    if not isinstance(group, Group) or group.data == 1:
        return prediction
    assumed = load_of(problem.demands.group, group)
    variant = chosen_variant(state.profile, group, problem.training, assumed)
    assert variant is not None
    times = StateMessageTimes(variant, state.cluster)
    plain = unsharded_variant(state.profile, group, assumed)
    graph = state.profile.graph if plain is None else plain.graph

    def totals(*whole: Whole) -> list[StageTotals[float]]:
        layers = sharded_layers(graph, group, problem.training, whole)
        own = msgspec.structs.replace(variant, graph=layers)
        there = layers_of_group(own, state.cluster, problem.training)
        priced = msgspec.structs.replace(problem, graph=there)
        return totals_with_policies(priced, layout, partition, policies)

    # Bytes are what each stage needs beyond one that is priced without them.
    with_all = totals("weights", "gradients")
    each = zip(with_all, totals("gradients"), totals(), strict=True)
    stages = [
        msgspec.structs.replace(
            stage,
            state=_actions(times.of_stage(sorted(members), own.recompute, own.selective), *needs),
        )
        for stage, members, own, needs in zip(
            prediction.stages, partition, policies, each, strict=True
        )
    ]
    return msgspec.structs.replace(prediction, stages=tuple(stages))


def _actions(
    seconds: ActionMessages,
    whole: StageTotals[float],
    gradients: StageTotals[float],
    neither: StageTotals[float],
) -> StateActions:
    """A stage's state actions: `whole` is priced with whole weights and gradients, `gradients` without weights."""

    def messages(own: Messages, workspace: str | None = None) -> StateMessages:
        needs = [getattr(one, workspace) if workspace else 0 for one in (whole, gradients, neither)]
        found = own._asdict() | {
            "gathered_bytes": int(needs[0] - needs[1]),
            "reducing_bytes": int(needs[1] - needs[2]),
        }
        # A file leaves zeros out.
        return StateMessages(**{name: value for name, value in found.items() if value})

    # One workspace covers F and B (docs/cost-model.md), and so does its part for whole weights.
    forward = messages(seconds.forward, "workspace_bytes")
    found = {
        "forward": msgspec.structs.replace(forward, reducing_bytes=0),
        "backward": messages(seconds.backward, "workspace_bytes"),
        "input_grad": messages(seconds.input_grad, "input_grad_workspace_bytes"),
        "weight_grad": messages(seconds.weight_grad, "weight_grad_workspace_bytes"),
        "step": messages(seconds.step),
    }
    nothing = StateMessages()
    return StateActions(**{name: own for name, own in found.items() if own != nothing})
