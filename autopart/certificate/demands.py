"""Whether a plan keeps the demands that it was solved with: counts, pins, policies, orders."""

from collections.abc import Sequence

from autopart.activations.demands import checked_policies
from autopart.activations.policies import (
    allowed_policies,
    has_policies,
    optimizer_places,
)
from autopart.certificate.plan_problem import PlanProblem, own_entry, partition_of
from autopart.certificate.space import check_covered
from autopart.certificate.stage_degrees import places_in_space
from autopart.errors import PlanError
from autopart.records.cluster import num_gpus
from autopart.records.demands import check_demands
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import Plan, follows_its_name, policy_of_layers, stage_ranks
from autopart.records.plan_degrees import degrees_name, rank_sizes, stage_groups
from autopart.records.problem import CUSTOM
from autopart.records.rank_group import group_size
from autopart.stage_degrees.pricing import check_ties
from autopart.text import counted


def check_kept(given: PlanProblem) -> str:
    """Raise PlanError where a plan breaks a demand; returns its shape and schedule in words.

    Raises AutopartError on demands that `solve` would refuse.
    """
    plan = given.plan
    ranks = stage_ranks(plan)
    _check_possible(plan, given.sized(own_entry(plan)).profile.graph)
    _check_counts(plan, num_gpus(given.problem.cluster))
    _check_pins(plan)
    _check_policies(plan, given.stage_graphs)
    _check_degrees(given)
    if plan.schedule not in plan.demands.schedules:
        raise PlanError(f"schedule '{plan.schedule}' was not among {list(plan.demands.schedules)}")
    replicas = sorted({len(own) for own in ranks})
    listed = "/".join(map(str, replicas))
    shape = f"{counted(len(ranks), 'stage')} x {listed} replica{'s' if max(replicas) > 1 else ''}"
    shape += f", {degrees_name(plan)}" if max(rank_sizes(plan)) > 1 else ""
    check_covered(plan)
    if plan.schedule == CUSTOM:
        return f"{shape}, orders of their own"
    if not follows_its_name(plan):
        raise PlanError(f"the orders are not those of schedule '{plan.schedule}'")
    return f"{shape}, {plan.schedule}"


def _check_possible(plan: Plan, graph: LayerGraph) -> None:
    """Raise AutopartError unless `solve` takes the demands, and leaves them as they are."""
    check_demands(plan.demands, plan.objective, graph)
    able = checked_policies(graph, plan.cluster, plan.demands).schedules
    if able != plan.demands.schedules:
        raise PlanError(
            f"the demands on recompute and offload leave the schedules {', '.join(able)}, "
            f"but the bound is for {', '.join(plan.demands.schedules)}"
        )


def _check_counts(plan: Plan, room: int) -> None:
    """Stages, replicas and ranks, by their numbers; the cluster has room for so many ranks."""
    demands, ranks = plan.demands, stage_ranks(plan)
    replicas = {len(own) for own in ranks}
    if demands.replicas_per_stage:
        if max(replicas) > plan.num_microbatches:
            raise PlanError(
                f"a stage has {counted(max(replicas), 'replica')} for {counted(plan.num_microbatches, 'microbatch')}"
            )
    elif len(replicas) > 1 or plan.num_microbatches % min(replicas):
        raise PlanError(
            f"stages have {sorted(replicas)} replicas: all must have as many, "
            f"and they must divide the {counted(plan.num_microbatches, 'microbatch')}"
        )
    beyond = max(rank for own in ranks for rank in own)
    if beyond >= room:
        raise PlanError(f"rank {beyond} stands on no GPU: the cluster has room for {room}")
    if demands.num_stages not in (None, len(ranks)):
        raise PlanError(
            f"{counted(demands.num_stages, 'stage was', 'stages were')} demanded, the plan has {len(ranks)}"
        )
    if demands.num_replicas not in (None, *replicas):
        raise PlanError(
            f"{counted(demands.num_replicas, 'replica was', 'replicas were')} demanded, not {max(replicas)}"
        )


def _check_pins(plan: Plan) -> None:
    """Pins to stages, and groups of layers that must share a stage or lie apart."""
    home = {name: index for index, stage in enumerate(plan.stages) for name in stage.layers}
    for pin in plan.demands.pins:
        if home[pin.layer] != pin.stage:
            raise PlanError(
                f"layer '{pin.layer}' is pinned to stage {pin.stage}, but on stage {home[pin.layer]}"
            )
    for group in plan.demands.same_stage:
        if len({home[name] for name in group}) > 1:
            raise PlanError(
                f"{list(group)} must share a stage, but are on {[home[n] for n in group]}"
            )
    for group in plan.demands.different_stage:
        if len({home[name] for name in group}) < len(set(group)):
            raise PlanError(f"{list(group)} must lie apart, but are on {[home[n] for n in group]}")


def _check_degrees(given: PlanProblem) -> None:
    """Tensor degrees of the stages' own: one for all copies of a tied parameter, on GPUs that the bound covers."""
    own, plan = given.own_degrees, given.plan
    if own is None:
        return
    degrees = tuple(group_size(tensor) for tensor in stage_groups(plan))
    check_ties(given.graph, partition_of(plan, given.graph), degrees)
    places_in_space(own, degrees, stage_ranks(plan))


def _check_policies(plan: Plan, graphs: Sequence[LayerGraph]) -> None:
    """Each layer's activation policy, and the place of optimizer state; `graphs` are the stages'."""
    layers = {
        layer.name: layer
        for stage, graph in zip(plan.stages, graphs, strict=True)
        for layer in graph.layers
        if layer.name in stage.layers
    }
    policies = [
        (name, own) for stage in plan.stages for name, own in policy_of_layers(stage).items()
    ]
    if any(own != "keep" for _, own in policies) and not has_policies(plan.schedule):
        raise PlanError(f"layers are not simply kept under '{plan.schedule}': that is not modelled")
    if plan.cluster.host_link is None and any(own == "offload" for _, own in policies):
        raise PlanError("layers are offloaded, but the plan's cluster has no host_link")
    _check_state(plan)
    for name, own in policies:
        allowed = allowed_policies(layers[name], plan.demands)
        if has_policies(plan.schedule) and own not in allowed:
            raise PlanError(
                f"the policy of layer '{name}' is {own}, but the demands allow {' or '.join(allowed)}"
            )


def _check_state(plan: Plan) -> None:
    """The place of each stage's optimizer state: device or host."""
    able = has_policies(plan.schedule)
    kept = "" if able else f" (under '{plan.schedule}' it stays on the device)"
    allowed = optimizer_places(plan.demands) if able else (False,)
    for index, stage in enumerate(plan.stages):
        if stage.optimizer_on_host not in allowed:
            where, asked = "host" if stage.optimizer_on_host else "device", plan.demands
            raise PlanError(
                f"the optimizer state of stage {index} lies on the {where}, against the demand to "
                f"offload it {asked.offload_optimizer}{kept}"
            )
        if stage.optimizer_on_host and plan.cluster.host_link is None:
            raise PlanError(
                f"the optimizer state of stage {index} lies on the host, but the plan's cluster has "
                "no host_link"
            )
