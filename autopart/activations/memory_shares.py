"""Shares in a stage's stash and workspace: for its loss, and for layers that run again or are offloaded.

Stash and workspace already count these bytes. The shares are reported next to the sum, and are not added to it.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from autopart.activations.policies import StagePolicies, kept_inside, policy_of
from autopart.cost.cuts import stage_totals
from autopart.cost.stage_totals import StageTotals
from autopart.cost.stages import in_a_row
from autopart.cost.workspaces import workspace_without
from autopart.records.layer_graph import LOSS, LayerGraph
from autopart.records.layouts import Partition


class Share(NamedTuple):
    """Bytes on one rank."""

    recomputed: int
    """Workspace that the stage needs only because stash comes back."""
    loss_stash: int
    """Stash for the loss, for one microbatch: the logits, and the stash inside the loss layer."""
    loss_workspace: int
    """Workspace that the stage needs only for its loss."""


def shares_of(
    graph: LayerGraph,
    partition: Partition,
    policies: Sequence[StagePolicies],
    all_totals: Sequence[StageTotals[float]],
) -> tuple[Share, ...]:
    """The shares for each stage in a partition; `all_totals` are the totals under the given policies."""
    losses = [at for at, layer in enumerate(graph.layers) if layer.kind == LOSS]
    kept = [int(totals.workspace_bytes) for totals in stage_totals(graph, partition)]
    without = workspace_without(graph, in_a_row(graph, partition), losses).tolist()
    return tuple(
        Share(
            recomputed=int(totals.workspace_bytes) - workspace,
            loss_stash=_loss_stash(graph, members, own, [at for at in losses if at in members]),
            loss_workspace=workspace - least,
        )
        for members, own, totals, workspace, least in zip(
            partition, policies, all_totals, kept, without, strict=True
        )
    )


def _loss_stash(
    graph: LayerGraph, members: Collection[int], policies: StagePolicies, losses: Sequence[int]
) -> int:
    if not losses:
        return 0
    names, loss_names = ({graph.layers[at].name for at in own} for own in (members, losses))
    run_again = not {*policies.recompute, *policies.selective}.isdisjoint(losses)
    # The logits count as stash unless the stage makes them and neither backward nor recompute needs them.
    logits = sum(
        value.bytes
        for value in graph.values
        if loss_names.intersection(value.consumers)
        and (value.producer not in names or value.kept_by or run_again)
    )
    inside = sum(kept_inside(graph.layers[at], policy_of(policies, at)) for at in losses)
    return logits + inside
