"""A profile and a cluster in, a checked plan out: the only crossroads.

It turns a user's words into a problem, lets the search find the fastest decision and its lower bound,
and writes both down as a plan; where nothing fits, it says the least memory that would do.
"""

import difflib
import itertools
import time
from collections.abc import Mapping, Sequence

import msgspec

from autopart import __version__, replica_search
from autopart.certificate import certificate, problem_of
from autopart.cluster import Cluster, check_cluster, num_gpus
from autopart.cost import predict
from autopart.cuts import Cuts, all_cuts
from autopart.errors import AutopartError, InfeasibleError
from autopart.graph import positions
from autopart.plan import Origin, Plan, Stage, orders_of
from autopart.problem import (
    SCHEDULES,
    Demands,
    Layout,
    Pin,
    Problem,
    layouts,
    optimizer_bytes,
    shapes,
)
from autopart.profile import Profile, profile_hash
from autopart.replica_bounds import missing_bytes
from autopart.schedules import make_schedule
from autopart.search import SOLVERS, Outcome, SolverName, search
from autopart.solvers import chain, parameters, uniform
from autopart.units import format_bytes

MICROBATCHES_PER_GPU = 4
"""Where no batch is named: enough that a pipeline over all GPUs idles less than a quarter."""


def solve(
    profile: Profile,
    cluster: Cluster,
    *,
    num_microbatches: int | None = None,
    global_batch: int | None = None,
    schedule: str = "auto",
    solver: str = "auto",
    num_stages: int | None = None,
    num_replicas: int | None = None,
    replicas_per_stage: bool = False,
    pins: Mapping[str, int] | None = None,
    same_stage: Sequence[Sequence[str]] = (),
    different_stage: Sequence[Sequence[str]] = (),
    optimizer: str = "adamw",
    time_limit: float = 60.0,
) -> Plan:
    """The fastest plan found for a profile on a cluster, with its certificate.

    `global_batch` counts samples of one optimizer step, `num_microbatches` microbatches of the
    profile's size; give one of them or neither. `replicas_per_stage` lets each stage have replicas of
    its own; else all have as many, `num_replicas` where that is given. `pins` puts layers on stages (counted from 0); the
    groups of `same_stage` must share a stage, those of `different_stage` must not. `time_limit` is in
    seconds; what it leaves open widens the certificate's gap.
    Raises InfeasibleError, naming the least memory that would do, where nothing fits.
    """
    began = time.perf_counter()
    problem = make_problem(
        profile,
        cluster,
        num_microbatches=_microbatches(profile, cluster, num_microbatches, global_batch),
        schedule=schedule,
        num_stages=num_stages,
        num_replicas=num_replicas,
        replicas_per_stage=replicas_per_stage,
        pins=pins,
        same_stage=same_stage,
        different_stage=different_stage,
        optimizer=optimizer,
    )
    find = replica_search.search if replicas_per_stage else search
    found = find(problem, _solver_name(solver), began + time_limit)
    return _plan(profile, problem, found, began)


def make_problem(
    profile: Profile,
    cluster: Cluster,
    *,
    num_microbatches: int,
    schedule: str = "auto",
    num_stages: int | None = None,
    num_replicas: int | None = None,
    replicas_per_stage: bool = False,
    pins: Mapping[str, int] | None = None,
    same_stage: Sequence[Sequence[str]] = (),
    different_stage: Sequence[Sequence[str]] = (),
    optimizer: str = "adamw",
) -> Problem:
    """The problem as the solvers are told it; raises AutopartError on an unknown word."""
    if schedule != "auto" and schedule not in SCHEDULES:
        raise AutopartError(f"unknown schedule '{schedule}'; known: auto, {', '.join(SCHEDULES)}")
    for what, count in (("stages", num_stages), ("replicas", num_replicas)):
        if count is not None and count < 1:
            raise AutopartError(f"{count} {what}: there must be at least 1")
    if replicas_per_stage and num_replicas is not None:
        raise AutopartError(
            f"{num_replicas} replicas for every stage, or replicas of their own: ask for one of them"
        )
    check_cluster(cluster)
    demands = Demands(
        num_stages=num_stages,
        num_replicas=num_replicas,
        replicas_per_stage=replicas_per_stage,
        schedules=SCHEDULES if schedule == "auto" else (schedule,),
        pins=tuple(Pin(layer=name, stage=stage) for name, stage in (pins or {}).items()),
        same_stage=tuple(map(tuple, same_stage)),
        different_stage=tuple(map(tuple, different_stage)),
    )
    _check_pins(profile, demands)
    return Problem(
        graph=profile.graph,
        cluster=cluster,
        microbatch_size=profile.microbatch_size,
        num_microbatches=num_microbatches,
        optimizer_bytes=optimizer_bytes(optimizer, profile.dtype),
        demands=demands,
    )


def _check_pins(profile: Profile, demands: Demands) -> None:
    known = positions(profile.graph)
    groups = (*demands.same_stage, *demands.different_stage)
    for name in (*(pin.layer for pin in demands.pins), *itertools.chain(*groups)):
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or list(known)[:3]
            raise AutopartError(
                f"the profile knows no layer '{name}' to pin; near it: {', '.join(near)}"
            )
    for pin in demands.pins:
        if pin.stage < 0 or (demands.num_stages is not None and pin.stage >= demands.num_stages):
            raise AutopartError(
                f"layer '{pin.layer}' is pinned to stage {pin.stage}; stages count from 0"
                + (f" to {demands.num_stages - 1}" if demands.num_stages else "")
            )


def baselines(profile: Profile, plan: Plan) -> dict[str, Plan | str]:
    """What uniform layers and balanced parameters would give with the plan's stages and replicas
    (any, where they are one stage), without its pins: a plan, or why there is none."""
    found: dict[str, Plan | str] = {}
    names: tuple[SolverName, ...] = ("uniform", "parameters")
    for name in names:
        began = time.perf_counter()
        demands = msgspec.structs.replace(
            plan.demands, pins=(), same_stage=(), different_stage=(), replicas_per_stage=False
        )
        problem = msgspec.structs.replace(problem_of(plan, profile.graph), demands=demands)
        try:
            found[name] = _plan(profile, problem, search(problem, name, began), began)
        except InfeasibleError as error:
            found[name] = str(error)
    return found


def _solver_name(solver: str) -> SolverName:
    for known in SOLVERS:
        if solver == known:
            return known
    raise AutopartError(f"unknown solver '{solver}'; known: {', '.join(SOLVERS)}")


def _microbatches(
    profile: Profile, cluster: Cluster, num_microbatches: int | None, global_batch: int | None
) -> int:
    if num_microbatches is not None:
        if num_microbatches < 1:
            raise AutopartError(f"{num_microbatches} microbatches: there must be at least 1")
        return num_microbatches
    if global_batch is None:
        return MICROBATCHES_PER_GPU * num_gpus(cluster)
    size = profile.microbatch_size
    if global_batch < size or global_batch % size:
        below = max(size, global_batch - global_batch % size)
        raise AutopartError(
            f"a global batch of {global_batch} is no multiple of the profile's microbatch of {size}; "
            f"try {below} or {below + size}, or profile with another --microbatch-size"
        )
    return global_batch // size


def _why_infeasible(problem: Problem, solver: SolverName) -> str:
    cuts = all_cuts(problem.graph)
    if problem.demands.replicas_per_stage or problem.cluster.gpus:
        return _what_is_missing(problem, cuts)
    limit = format_bytes(problem.cluster.memory_bytes)
    needs = [
        (least, shape)
        for shape in shapes(problem)
        for layout in layouts(problem, *shape)
        if (least := _least_memory(problem, layout, cuts, solver)) is not None
    ]
    if not needs:
        return "no partition keeps all pins at once, whatever the memory; drop one of them"
    least, (k, r) = min(needs)
    return (
        f"nothing fits into {limit} a GPU: the least that would do is {format_bytes(least)} "
        f"({least} bytes), with {k} stages and {r} replicas; try more memory, more GPUs, a smaller "
        "--microbatch-size, or another --optimizer"
    )


def _what_is_missing(problem: Problem, cuts: Cuts) -> str:
    missing = missing_bytes(problem, cuts)
    least = problem.cluster.memory_bytes + missing
    if missing == 0:
        return (
            "no stages were found that fit and keep all demands at once; drop a demand, "
            "or give the search more --time-limit"
        )
    would_do = f"the least that would do is {format_bytes(least)} ({least} bytes)"
    if problem.cluster.gpus:
        would_do = f"each GPU would need {format_bytes(missing)} ({missing} bytes) more at least"
    return (
        f"nothing fits into {format_bytes(problem.cluster.memory_bytes)} a GPU: {would_do}; try "
        "more memory, more GPUs, a smaller --microbatch-size, or another --optimizer"
    )


def _least_memory(problem: Problem, layout: Layout, cuts: Cuts, solver: SolverName) -> int | None:
    num_stages = len(layout.stage_ranks)
    if solver == "uniform":
        partition = uniform.solve(len(problem.graph.layers), num_stages)
    elif solver == "parameters":
        partition = parameters.solve(cuts, num_stages)
    else:
        return chain.least_memory(problem, layout, cuts)
    return max(stage.peak_bytes for stage in predict(problem, layout, partition)[0])


def _plan(profile: Profile, problem: Problem, found: Outcome, began: float) -> Plan:
    if found.best is None:
        raise InfeasibleError(_why_infeasible(problem, found.solver))
    layers, best = problem.graph.layers, found.best
    return Plan(
        origin=Origin(
            model=profile.source.model,
            graph_hash=profile.source.graph_hash,
            profile_hash=profile_hash(profile),
            method=profile.method,
            dtype=profile.dtype,
            solver=found.solver,
            solve_seconds=time.perf_counter() - began,
            autopart=__version__,
        ),
        cluster=problem.cluster,
        microbatch_size=problem.microbatch_size,
        num_microbatches=problem.num_microbatches,
        optimizer_bytes=problem.optimizer_bytes,
        demands=problem.demands,
        stages=tuple(
            Stage(layers=tuple(layers[at].name for at in members), ranks=ranks)
            for members, ranks in zip(best.partition, best.layout.stage_ranks, strict=True)
        ),
        schedule=best.layout.schedule,
        orders=orders_of(
            make_schedule(best.layout.schedule, best.layout.stage_ranks, problem.num_microbatches)
        ),
        prediction=best.prediction,
        certificate=certificate(
            problem, best.prediction.step_time, found.lower_bound, found.simulated
        ),
    )
