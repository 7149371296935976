"""The check of a plan and its certificate, without any solver.

`verify` takes the plan and the profile that it was made from, or all profiles where several
microbatch sizes were searched. It recomputes every number in the plan with the cost model, the
simulator and the bounds. It uses neither code nor state from a solver.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec

from autopart.bounds.objectives import TOLERANCE
from autopart.certificate.bound import check_bound, check_own_bounds
from autopart.certificate.certificate import certificate
from autopart.certificate.demands import check_kept
from autopart.certificate.plan_problem import (
    PlanProblem,
    layout_of,
    own_entry,
    partition_of,
    searched_name,
)
from autopart.certificate.prediction import check_prediction
from autopart.certificate.stage_degrees import (
    check_bound_of_degrees,
    check_own_bounds_of_degrees,
    places_in_space,
)
from autopart.cost.memory_limits import free_bytes, free_host_bytes
from autopart.errors import AutopartError, PlanError
from autopart.pricing import minimised
from autopart.records.check import Check
from autopart.records.cluster import host_share
from autopart.records.group_choice import choice_name
from autopart.records.microbatch_sizes import check_same_model, nearest_size
from autopart.records.plan import SOLVERS, Origin, Plan, SearchedSize, check_plan, stage_ranks
from autopart.records.plan_degrees import stage_groups
from autopart.records.profile import Profile
from autopart.records.rank_group import Group, group_size, samples_per_gpu
from autopart.records.sharded_choices import searched_choices
from autopart.schedules.actions import count_actions
from autopart.stage_degrees.problem import searched_stage_degrees
from autopart.text import counted
from autopart.units import format_bytes, format_gap, format_share, format_time


def verify(plan: Plan, profile: Profile | Sequence[Profile]) -> tuple[Check, ...]:
    """Check a plan against the profile, or all profiles, that it was made from.

    Each check builds on the checks before it, so the first failure is the last one reported.
    """
    checks: list[Check] = []
    given = PlanProblem(plan, [profile] if isinstance(profile, Profile) else profile)
    for name, question in _QUESTIONS.items():
        try:
            checks.append(Check(name, True, question(given)))
        except AutopartError as error:
            checks.append(Check(name, False, str(error)))
            break
    return tuple(checks)


def _orders_whole(given: PlanProblem) -> str:
    check_plan(given.plan)
    actions = sum(map(count_actions, given.plan.orders))
    return f"{counted(actions, 'action')}, complete, no deadlock"


def _profile_matches(given: PlanProblem) -> str:
    plan, own = given.plan, own_entry(given.plan)
    if plan.origin.profile_hash != own.profile_hash:
        raise PlanError(
            f"the plan says that it was made from profile {plan.origin.profile_hash} and from "
            f"{own.profile_hash}"
        )
    measured = [profile.microbatch_size for profile in given.profiles]
    for size in plan.sizes:
        given.sized(size)
        if plan.num_microbatches * plan.microbatch_size % size.microbatch_size:
            raise PlanError(f"microbatches of {size.microbatch_size} do not divide the batch")
        # `solve` scales from the nearest profile; another one could make a size look slow.
        nearest = nearest_size(measured, samples_per_gpu(size.microbatch_size, size.group))
        if size.profiled_size != nearest:
            raise PlanError(
                f"microbatches of {size.microbatch_size} are scaled from {size.profiled_size}, "
                f"but the nearest profile has {nearest}"
            )
    _check_searched(given)
    named = {size.profile_hash for size in plan.sizes}
    for name in given.by_hash:
        if name not in named:
            raise PlanError(f"the plan was not made from profile {name}")
    check_same_model(given.profiles)
    _check_origin(plan.origin, given.by_hash[own.profile_hash])
    return f"profile {', '.join(sorted(named))}"


def _check_searched(given: PlanProblem) -> None:
    """Raise PlanError unless each microbatch size was searched once with each rank group that is allowed."""
    plan = given.plan
    named = [(size.microbatch_size, searched_name(size)) for size in plan.sizes]
    asked = [
        pair
        for size in {samples_per_gpu(s.microbatch_size, s.group): s for s in plan.sizes}.values()
        for pair in _searched_names(given, size)
    ]
    for wrong, what in (
        ([one for one in named if named.count(one) > 1], "names twice microbatches"),
        ([one for one in named if one not in asked], "names, against its demands, microbatches"),
        ([one for one in asked if one not in named], "leaves out microbatches"),
        (
            [one for one, other in zip(named, asked, strict=False) if one != other],
            "moves microbatches",
        ),
    ):
        if wrong:
            size, name = wrong[0]
            raise PlanError(f"the plan's list of searched sizes {what} of {size} at {name}")


def _searched_names(given: PlanProblem, size: SearchedSize) -> list[tuple[int, str]]:
    """The rank groups that the demands leave for the samples of a GPU, with their microbatch size, in their order."""
    plan, profile = given.plan, given.sized(size).profile
    demand = plan.demands.group
    per_stage = searched_stage_degrees(profile, plan.cluster, demand)
    one = msgspec.structs.replace(size, per_stage=msgspec.UNSET)
    samples, batch = profile.microbatch_size, plan.num_microbatches * plan.microbatch_size
    choices = searched_choices(profile, plan.cluster, demand, plan.training, batch // samples)
    return [
        (samples * (one.group.data if isinstance(one.group, Group) else 1), choice_name(one))
        for one in choices
    ] + [(samples, searched_name(msgspec.structs.replace(one, per_stage=own))) for own in per_stage]


def _check_origin(origin: Origin, profile: Profile) -> None:
    """Raise PlanError where the plan's origin says otherwise than its profile."""
    pairs = (
        ("model", origin.model, profile.source.model),
        ("graph hash", origin.graph_hash, profile.source.graph_hash),
        ("method", origin.method, profile.method),
        ("dtype", origin.dtype, profile.dtype),
        ("own dtypes", origin.own_dtypes, profile.own_dtypes),
        ("pace", origin.pace, profile.pace),
    )
    for subject, said, given in pairs:
        if said != given:
            raise PlanError(f"the plan says {subject} {said}, its profile says {given}")
    if origin.solver not in SOLVERS:
        raise PlanError(f"the plan names solver '{origin.solver}', which is unknown")


def _layers_once(given: PlanProblem) -> str:
    layers, partition = given.graph.layers, partition_of(given.plan, given.graph)
    placed = {layer for stage in partition for layer in stage}
    missing = [la.name for at, la in enumerate(layers) if at not in placed]
    if missing:
        raise PlanError(
            f"no stage has layer '{missing[0]}' ({counted(len(missing), 'layer is', 'layers are')} missing)"
        )
    for index, stage in enumerate(partition):
        for first, second in itertools.pairwise(stage):
            if first > second:
                raise PlanError(
                    f"stage {index} has layer '{layers[first].name}' before '{layers[second].name}', "
                    "and the profile has them the other way round"
                )
    return f"{counted(len(placed), 'layer')}, each on one stage"


def _edges_forward(given: PlanProblem) -> str:
    stages, values = given.plan.stages, given.graph.values
    home = {name: index for index, stage in enumerate(stages) for name in stage.layers}
    for value in values:
        for consumer in value.consumers:
            if home[consumer] < home[value.producer]:
                raise PlanError(
                    f"'{value.producer}' on stage {home[value.producer]} feeds '{consumer}' on the "
                    f"earlier stage {home[consumer]}"
                )
    return f"{counted(len(values), 'value')}, none goes back"


def _demands_kept(given: PlanProblem) -> str:
    return check_kept(given)


def _prediction_reproduced(given: PlanProblem) -> str:
    check_prediction(given)
    prediction = given.plan.prediction
    bubble = format_share(prediction.bubble)
    return f"step time {format_time(prediction.step_time)}, bubble {bubble}"


def _memory_kept(given: PlanProblem) -> str:
    plan = given.plan
    peaks = plan.prediction.rank_peak_bytes
    cluster = given.problem.cluster
    free = [free_bytes(cluster, (rank,), peak) for rank, peak in enumerate(peaks)]
    worst = min(range(len(peaks)), key=free.__getitem__)
    peak, limit = format_bytes(peaks[worst]), format_bytes(peaks[worst] + free[worst])
    if free[worst] < 0:
        raise PlanError(f"rank {worst} needs {peak} of {limit}")
    share, on_host = host_share(cluster), free_host_bytes(cluster, plan.prediction)
    if share is not None and on_host is not None and on_host < 0:
        raise PlanError(
            f"one rank offloads {format_bytes(share - on_host)}, "
            f"its share of the host is {format_bytes(share)}"
        )
    return f"at most {peak} of {limit}, on rank {worst}"


def _bound_holds(given: PlanProblem) -> str:
    plan, carried, problem = given.plan, given.plan.certificate, given.problem
    value = minimised(problem, plan.prediction, stage_ranks(plan))
    # Step 1: the certificate says no more than the bounds of the sizes do.
    if own_entry(plan).lower_bound is None:
        raise PlanError("the plan says that its own microbatch size and rank group have no plan")
    every_size = [given.degrees_at(size) or given.problem_at(size) for size in plan.sizes]
    ours = certificate(problem, value, plan.sizes, every_size)
    if not abs(ours.lower_bound - carried.lower_bound) <= TOLERANCE * ours.lower_bound < math.inf:
        raise PlanError(
            f"the plan says bound {carried.lower_bound}, its sizes only {ours.lower_bound}"
        )
    if not _same_gap(ours.gap, carried.gap):
        raise PlanError(f"the plan says gap {carried.gap}, recomputed {ours.gap}")
    if not abs(ours.any_order_bound - carried.any_order_bound) <= TOLERANCE * ours.any_order_bound:
        raise PlanError(
            f"the plan says that no order beats {carried.any_order_bound} s, recomputed "
            f"{ours.any_order_bound} s; a plan of an older autopart must be solved again"
        )
    if carried.lower_bound > value * (1 + TOLERANCE):
        raise PlanError(f"the bound {carried.lower_bound} lies above the plan's own {value}")
    if (carried.assumes, carried.simulated) != (ours.assumes, ours.simulated):
        raise PlanError(
            f"the bound holds for {ours.assumes} and {ours.simulated} simulated partitions, "
            f"not for {carried.assumes} and {carried.simulated}; a plan of an older autopart must "
            "be solved again"
        )
    # Step 2: the bounds do not exclude the plan itself.
    _leaves_room(given, value)
    # Step 3: each of these bounds holds.
    for size in plan.sizes:
        value = math.inf if size.lower_bound is None else size.lower_bound
        degrees = given.degrees_at(size)
        if degrees is None:
            check_bound(given.problem_at(size), value, size.simulated)
        else:
            check_bound_of_degrees(degrees, value, size.simulated)
    what = "is faster than" if plan.objective == "step" else f"has a {plan.objective} below"
    return (
        f"no plan {what} {format_time(carried.lower_bound)}: "
        f"gap {format_gap(carried.gap)}, {carried.simulated} partitions simulated"
    )


def _leaves_room(given: PlanProblem, value: float) -> None:
    """Raise PlanError where the bounds exclude the plan itself, which takes `value` seconds."""
    plan, own, layout = given.plan, given.own_degrees, layout_of(given.plan)
    partition = partition_of(plan, given.graph)
    if own is None:
        check_own_bounds(given.problem, layout, partition, value)
        return
    degrees = tuple(group_size(tensor) for tensor in stage_groups(plan))
    places = places_in_space(own, degrees, layout.stage_ranks)
    check_own_bounds_of_degrees(own, places, plan.schedule, partition, value)


def _same_gap(ours: float | None, theirs: float | None) -> bool:
    """Whether two gaps are equal; an unknown gap equals only another one."""
    if ours is None or theirs is None:
        return ours is theirs
    return abs(ours - theirs) <= TOLERANCE * (1 + ours)


_QUESTIONS: dict[str, Callable[[PlanProblem], str]] = {
    "orders": _orders_whole,
    "profile": _profile_matches,
    "layers": _layers_once,
    "edges": _edges_forward,
    "demands": _demands_kept,
    "prediction": _prediction_reproduced,
    "memory": _memory_kept,
    "bound": _bound_holds,
}
"""The checks in their order. Each returns its finding in words, or raises PlanError."""
