"""What a plan carries as proof, and the check of it that needs no solver.

`verify` takes the plan and the profile it was made from, or all of them where several microbatch sizes
were searched, and recomputes every number in the plan
with the cost model, the simulator and the bounds: nothing of a solver's code or state is used.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from autopart.assumptions import assumptions
from autopart.cluster import host_share, smallest_memory
from autopart.cost import held_by, predict, rank_peaks
from autopart.errors import PlanError, ProfileError
from autopart.graph import LayerGraph, positions
from autopart.layouts import Layout
from autopart.plan import (
    Certificate,
    Plan,
    Prediction,
    SearchedSize,
    check_plan,
    schedule_of,
    stage_ranks,
    way_of_layers,
)
from autopart.pricing import minimised
from autopart.problem import CUSTOM, Problem
from autopart.profile import Profile, profile_hash
from autopart.proof import TOLERANCE, check_bound
from autopart.schedules import make_schedule
from autopart.simulator import simulate_plan
from autopart.sizes import Sized, at_size, check_same_model
from autopart.stage_load import Partition
from autopart.units import format_bytes, format_share, format_time
from autopart.ways import StageWays, allowed_ways, can_treat, places_of_state

Profiles = tuple[Profile, ...]


class Check(NamedTuple):
    """One question that `verify` asked of a plan, and the answer."""

    name: str
    passed: bool
    detail: str


def certificate(problem: Problem, value: float, sizes: Sequence[SearchedSize]) -> Certificate:
    """The certificate of a plan for `problem` that takes `value` seconds of what is minimised, when
    `sizes` says what is proven of each microbatch size that was searched."""
    bound = min(size.lower_bound for size in sizes if size.lower_bound is not None)
    return Certificate(
        lower_bound=bound,
        gap=max(0.0, value / bound - 1) if bound > 0 else 0.0,
        simulated=sum(size.simulated for size in sizes),
        assumes=assumptions(problem, sizes),
    )


def own_size(plan: Plan, profile: Profile | Sequence[Profile]) -> Sized:
    """The model at the plan's microbatch size, from the profiles that the plan was made from.

    Raises PlanError where none of them is the one that the plan names.
    """
    given = [profile] if isinstance(profile, Profile) else profile
    return _sized(_own_entry(plan), given)


def _own_entry(plan: Plan) -> SearchedSize:
    """What the plan says of its own microbatch size."""
    for size in plan.sizes:
        if size.microbatch_size == plan.microbatch_size:
            return size
    raise PlanError(
        f"the plan runs microbatches of {plan.microbatch_size}, but says that "
        f"{[size.microbatch_size for size in plan.sizes]} were searched; solve again"
    )


def _sized(size: SearchedSize, profiles: Sequence[Profile]) -> Sized:
    """The model at a searched size, scaled where the plan says so."""
    found = {profile_hash(profile): profile for profile in profiles}
    if size.profile_hash not in found:
        raise PlanError(
            f"the plan was made from profile {size.profile_hash}, given is {', '.join(found)}; "
            "take the profile that it was solved with, or all of them, or solve again"
        )
    profile = found[size.profile_hash]
    if size.profiled_size != profile.microbatch_size:
        raise PlanError(
            f"the plan says that profile {size.profile_hash} has microbatches of "
            f"{size.profiled_size}, but it was taken with {profile.microbatch_size}"
        )
    return at_size(profile, size.microbatch_size)


def problem_of(plan: Plan, graph: LayerGraph) -> Problem:
    """The problem that a plan says it solves, for the layer graph of its own microbatch size."""
    return Problem(
        graph=graph,
        cluster=plan.cluster,
        microbatch_size=plan.microbatch_size,
        num_microbatches=plan.num_microbatches,
        training=plan.training,
        demands=plan.demands,
        objective=plan.objective,
    )


def _problem_at(plan: Plan, size: SearchedSize, profiles: Sequence[Profile]) -> Problem:
    """The problem of another microbatch size, with as many samples in a batch."""
    batch = plan.num_microbatches * plan.microbatch_size
    return msgspec.structs.replace(
        problem_of(plan, _sized(size, profiles).profile.graph),
        microbatch_size=size.microbatch_size,
        num_microbatches=batch // size.microbatch_size,
    )


def partition_of(plan: Plan, graph: LayerGraph) -> Partition:
    """The positions of each stage's layers in the graph; raises PlanError on an unknown layer."""
    place = positions(graph)
    for index, stage in enumerate(plan.stages):
        for name in stage.layers:
            if name not in place:
                raise PlanError(
                    f"stage {index} holds layer '{name}', which the profile does not know"
                )
    return tuple(tuple(place[name] for name in stage.layers) for stage in plan.stages)


def ways_of(plan: Plan, graph: LayerGraph) -> tuple[StageWays, ...]:
    """For each stage the positions of its layers that are not simply kept."""
    place = positions(graph)

    def at(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted(place[name] for name in names))

    return tuple(
        StageWays(
            at(stage.recompute), at(stage.selective), at(stage.offload), stage.optimizer_on_host
        )
        for stage in plan.stages
    )


def verify(plan: Plan, profile: Profile | Sequence[Profile]) -> tuple[Check, ...]:
    """Check a plan against the profile, or all the profiles, that it was made from, without any solver.

    The checks stand on each other: the first that fails is the last one reported.
    """
    checks: list[Check] = []
    given = (profile,) if isinstance(profile, Profile) else tuple(profile)
    for name, question in _QUESTIONS.items():
        try:
            checks.append(Check(name, True, question(plan, given)))
        except PlanError as error:
            checks.append(Check(name, False, str(error)))
            break
    return tuple(checks)


def _orders_whole(plan: Plan, profiles: Profiles) -> str:
    check_plan(plan)
    return f"{sum(len(order.split()) for order in plan.orders)} actions, complete, no deadlock"


def _profile_matches(plan: Plan, profiles: Profiles) -> str:
    own = _own_entry(plan)
    if plan.origin.profile_hash != own.profile_hash:
        raise PlanError(
            f"the plan says that it was made from profile {plan.origin.profile_hash} and from "
            f"{own.profile_hash}"
        )
    for size in plan.sizes:
        _sized(size, profiles)
        if plan.num_microbatches * plan.microbatch_size % size.microbatch_size:
            raise PlanError(f"microbatches of {size.microbatch_size} do not divide the batch")
    sizes = [size.microbatch_size for size in plan.sizes]
    if len(set(sizes)) < len(sizes):
        raise PlanError(f"the plan names a microbatch size twice: {sizes}")
    named = {size.profile_hash for size in plan.sizes}
    for profile in profiles:
        if profile_hash(profile) not in named:
            raise PlanError(f"the plan was not made from profile {profile_hash(profile)}")
    try:
        check_same_model(profiles)
    except ProfileError as error:
        raise PlanError(str(error)) from None
    return f"profile {', '.join(sorted(named))}"


def _graph(plan: Plan, profiles: Profiles) -> LayerGraph:
    """The layer graph at the plan's own microbatch size."""
    return own_size(plan, profiles).profile.graph


def _layers_once(plan: Plan, profiles: Profiles) -> str:
    graph = _graph(plan, profiles)
    partition = partition_of(plan, graph)
    held = {layer for stage in partition for layer in stage}
    missing = [la.name for at, la in enumerate(graph.layers) if at not in held]
    if missing:
        raise PlanError(f"no stage holds layer '{missing[0]}' ({len(missing)} layers are missing)")
    return f"{len(held)} layers, each on one stage"


def _edges_forward(plan: Plan, profiles: Profiles) -> str:
    home = {name: index for index, stage in enumerate(plan.stages) for name in stage.layers}
    graph = _graph(plan, profiles)
    for value in graph.values:
        for consumer in value.consumers:
            if home[consumer] < home[value.producer]:
                raise PlanError(
                    f"'{value.producer}' on stage {home[value.producer]} feeds '{consumer}' on the "
                    f"earlier stage {home[consumer]}"
                )
    return f"{len(graph.values)} values, none goes back"


def _demands_kept(plan: Plan, profiles: Profiles) -> str:
    demands, ranks = plan.demands, stage_ranks(plan)
    replicas = {len(own) for own in ranks}
    if demands.replicas_per_stage:
        if max(replicas) > plan.num_microbatches:
            raise PlanError(
                f"a stage has {max(replicas)} replicas for {plan.num_microbatches} microbatches"
            )
    elif len(replicas) > 1 or plan.num_microbatches % min(replicas):
        raise PlanError(
            f"stages have {sorted(replicas)} replicas: all must have as many, "
            f"and they must divide the {plan.num_microbatches} microbatches"
        )
    gpus = plan.cluster.num_nodes * plan.cluster.gpus_per_node
    beyond = max(rank for own in ranks for rank in own)
    if beyond >= gpus:
        raise PlanError(f"rank {beyond} stands on no GPU: the cluster has {gpus}")
    if demands.num_stages not in (None, len(ranks)):
        raise PlanError(f"{demands.num_stages} stages were demanded, the plan has {len(ranks)}")
    if demands.num_replicas not in (None, *replicas):
        raise PlanError(f"{demands.num_replicas} replicas were demanded, not {max(replicas)}")
    _pins_kept(plan)
    _ways_kept(plan, _graph(plan, profiles))
    if plan.schedule not in demands.schedules:
        raise PlanError(f"schedule '{plan.schedule}' was not among {list(demands.schedules)}")
    shape = f"{len(ranks)} stage{'s' if len(ranks) > 1 else ''} x "
    shape += f"{'/'.join(map(str, sorted(replicas)))} replica{'s' if max(replicas) > 1 else ''}"
    if plan.schedule == CUSTOM:
        return f"{shape}, orders of their own"
    if make_schedule(plan.schedule, ranks, plan.num_microbatches) != schedule_of(plan):
        raise PlanError(f"the orders are not those of schedule '{plan.schedule}'")
    return f"{shape}, {plan.schedule}"


def _pins_kept(plan: Plan) -> None:
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


def _ways_kept(plan: Plan, graph: LayerGraph) -> None:
    """Whether each layer's stash goes a way that the demands allow."""
    layers = {layer.name: layer for layer in graph.layers}
    ways = [(name, own) for stage in plan.stages for name, own in way_of_layers(stage).items()]
    treats = any(own != "keep" for _, own in ways)
    if treats and not can_treat(plan.schedule):
        raise PlanError(f"layers are not simply kept under '{plan.schedule}': that is not modelled")
    if plan.cluster.host_link is None and any(own == "offload" for _, own in ways):
        raise PlanError("layers are offloaded, but the plan's cluster has no host_link")
    _state_in_place(plan)
    for name, own in ways:
        allowed = allowed_ways(layers[name], plan.demands)
        if can_treat(plan.schedule) and own not in allowed:
            raise PlanError(
                f"the way of layer '{name}' is {own}, but the demands leave it {' or '.join(allowed)}"
            )


def _state_in_place(plan: Plan) -> None:
    """Whether optimizer state lies where the demands allow."""
    allowed = places_of_state(plan.demands) if can_treat(plan.schedule) else (False,)
    for index, stage in enumerate(plan.stages):
        if stage.optimizer_on_host not in allowed:
            where, asked = "host" if stage.optimizer_on_host else "device", plan.demands
            raise PlanError(
                f"the optimizer state of stage {index} lies on the {where}, against the demand to "
                f"offload it {asked.offload_optimizer} (gpipe and 1f1b alone let it leave the device)"
            )
        if stage.optimizer_on_host and plan.cluster.host_link is None:
            raise PlanError(
                f"the optimizer state of stage {index} lies on the host, but the plan's cluster has "
                "no host_link"
            )


def _prediction_reproduced(plan: Plan, profiles: Profiles) -> str:
    layout = Layout(
        schedule=plan.schedule,
        stage_ranks=stage_ranks(plan),
        num_microbatches=plan.num_microbatches,
    )
    graph = _graph(plan, profiles)
    problem = problem_of(plan, graph)
    schedule = schedule_of(plan)
    held = held_by(schedule, layout.stage_ranks) if plan.schedule == CUSTOM else None
    partition = partition_of(plan, graph)
    stages, syncs = predict(problem, layout, partition, ways_of(plan, graph), held)
    costs = Prediction(
        step_time=0.0,
        bubble=0.0,
        rank_peak_bytes=rank_peaks(layout.stage_ranks, schedule, stages),
        stages=stages,
        syncs=syncs,
    )
    timeline = simulate_plan(msgspec.structs.replace(plan, prediction=costs))
    ours = msgspec.structs.replace(costs, step_time=timeline.makespan, bubble=timeline.bubble)
    difference = _difference(msgspec.to_builtins(ours), msgspec.to_builtins(plan.prediction), "")
    if difference:
        raise PlanError(f"the prediction is not reproduced: {difference}")
    return f"step time {format_time(timeline.makespan)}, bubble {format_share(timeline.bubble)}"


def _difference(ours: object, theirs: object, path: str) -> str | None:
    """The first place where two trees of plain values differ by more than TOLERANCE."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(f"{path}.{key}", ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            return f"prediction{path} has {len(theirs)} entries, recomputed {len(ours)}"
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    elif isinstance(ours, float) and isinstance(theirs, int | float):
        near = abs(ours - theirs) <= TOLERANCE * max(abs(ours), abs(theirs))
        return None if near else f"prediction{path} is {theirs}, recomputed {ours}"
    else:
        return None if ours == theirs else f"prediction{path} is {theirs}, recomputed {ours}"
    return next((found for at, a, b in pairs if (found := _difference(a, b, at))), None)


def _memory_kept(plan: Plan, profiles: Profiles) -> str:
    peaks = plan.prediction.rank_peak_bytes
    limits = [smallest_memory(plan.cluster, (rank,)) for rank in range(len(peaks))]
    worst = max(range(len(peaks)), key=lambda rank: peaks[rank] - limits[rank])
    peak, limit = format_bytes(peaks[worst]), format_bytes(limits[worst])
    if peaks[worst] > limits[worst]:
        raise PlanError(f"rank {worst} needs {peak} of {limit}")
    share, hosted = host_share(plan.cluster), max(s.memory.host for s in plan.prediction.stages)
    if share is not None and hosted > share:
        raise PlanError(
            f"a rank offloads {format_bytes(hosted)}, its share of the host is {format_bytes(share)}"
        )
    return f"at most {peak} of {limit}, on rank {worst}"


def _bound_holds(plan: Plan, profiles: Profiles) -> str:
    carried, problem = plan.certificate, problem_of(plan, _graph(plan, profiles))
    value = minimised(problem, plan.prediction, stage_ranks(plan))
    if _own_entry(plan).lower_bound is None:
        raise PlanError("the plan says that its own microbatch size has no plan")
    ours = certificate(problem, value, plan.sizes)
    if abs(ours.lower_bound - carried.lower_bound) > TOLERANCE * ours.lower_bound:
        raise PlanError(
            f"the plan says bound {carried.lower_bound}, its sizes only {ours.lower_bound}"
        )
    if abs(ours.gap - carried.gap) > TOLERANCE * (1 + ours.gap):
        raise PlanError(f"the plan says gap {carried.gap}, recomputed {ours.gap}")
    if carried.lower_bound > value * (1 + TOLERANCE):
        raise PlanError(f"the bound {carried.lower_bound} lies above the plan's own {value}")
    if (carried.assumes, carried.simulated) != (ours.assumes, ours.simulated):
        raise PlanError(
            f"the bound holds for {ours.assumes} and {ours.simulated} simulated partitions, "
            f"not for {carried.assumes} and {carried.simulated}"
        )
    for size in plan.sizes:
        value = math.inf if size.lower_bound is None else size.lower_bound
        check_bound(_problem_at(plan, size, profiles), value, size.simulated)
    what = "is faster than" if plan.objective == "step" else "has a bottleneck below"
    return (
        f"no plan {what} {format_time(carried.lower_bound)}: "
        f"gap {format_share(carried.gap)}, {carried.simulated} partitions simulated"
    )


_QUESTIONS: dict[str, Callable[[Plan, Profiles], str]] = {
    "orders": _orders_whole,
    "profile": _profile_matches,
    "layers": _layers_once,
    "edges": _edges_forward,
    "demands": _demands_kept,
    "prediction": _prediction_reproduced,
    "memory": _memory_kept,
    "bound": _bound_holds,
}
