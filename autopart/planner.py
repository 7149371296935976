"""A profile and a cluster in, a checked plan out: the only crossroads.

The planner walks over the shapes (stages, replicas), those with the smallest lower bound first; for
each layout of a shape a solver proposes partitions, the cost model prices them, the simulator says
how long the step takes, and the fastest is kept. A shape whose bound is no smaller than the best
step so far is passed over: nothing in it can win.
"""

import time
from typing import Literal, NamedTuple

from autopart import __version__
from autopart.bounds import shape_bounds
from autopart.certificate import certify, problem_of
from autopart.cluster import Cluster, num_gpus
from autopart.cost import Partition, StageLoad, interval_loads, predict
from autopart.errors import AutopartError, InfeasibleError
from autopart.graph import is_chain
from autopart.plan import Origin, Plan, Prediction, Stage, orders_of
from autopart.problem import (
    SCHEDULES,
    Demands,
    Layout,
    Problem,
    layouts,
    optimizer_bytes,
    shapes,
)
from autopart.profile import Profile, profile_hash
from autopart.schedule import make_schedule
from autopart.simulator import simulate
from autopart.solvers import chain, ilp, parameters, uniform
from autopart.units import format_bytes

SolverName = Literal["auto", "dp", "ilp", "uniform", "parameters"]
SOLVERS: tuple[SolverName, ...] = ("auto", "dp", "ilp", "uniform", "parameters")

MICROBATCHES_PER_GPU = 4
"""Where no batch is named: enough that a pipeline over all GPUs idles less than a quarter."""


class _Candidate(NamedTuple):
    layout: Layout
    partition: Partition
    prediction: Prediction
    orders: tuple[str, ...]
    solver: str


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
    optimizer: str = "adamw",
    time_limit: float = 60.0,
) -> Plan:
    """The fastest plan found for a profile on a cluster, with its certificate.

    `global_batch` counts samples of one optimizer step, `num_microbatches` microbatches of the
    profile's size; give one of them or neither. `time_limit` bounds the ILP, in seconds.
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
        optimizer=optimizer,
    )
    best = _search(problem, _solver_name(solver), began + time_limit)
    return _plan(profile, problem, best, time.perf_counter() - began)


def make_problem(
    profile: Profile,
    cluster: Cluster,
    *,
    num_microbatches: int,
    schedule: str = "auto",
    num_stages: int | None = None,
    num_replicas: int | None = None,
    optimizer: str = "adamw",
) -> Problem:
    """The problem as the solvers are told it; raises AutopartError on an unknown word."""
    if schedule != "auto" and schedule not in SCHEDULES:
        raise AutopartError(f"unknown schedule '{schedule}'; known: auto, {', '.join(SCHEDULES)}")
    for what, count in (("stages", num_stages), ("replicas", num_replicas)):
        if count is not None and count < 1:
            raise AutopartError(f"{count} {what}: there must be at least 1")
    return Problem(
        graph=profile.graph,
        cluster=cluster,
        microbatch_size=profile.microbatch_size,
        num_microbatches=num_microbatches,
        optimizer_bytes=optimizer_bytes(optimizer, profile.dtype),
        demands=Demands(
            num_stages=num_stages,
            num_replicas=num_replicas,
            schedules=SCHEDULES if schedule == "auto" else (schedule,),
        ),
    )


def baselines(profile: Profile, plan: Plan) -> dict[str, Plan | str]:
    """What uniform layers and balanced parameters would give with the plan's stages and replicas
    (any, where they are one stage): a plan, or why there is none."""
    found: dict[str, Plan | str] = {}
    for name in ("uniform", "parameters"):
        began = time.perf_counter()
        problem = problem_of(plan, profile.graph)
        try:
            best = _search(problem, name, began)
            found[name] = _plan(profile, problem, best, time.perf_counter() - began)
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


def _search(problem: Problem, solver: SolverName, deadline: float) -> _Candidate:
    bounds = shape_bounds(problem)
    loads = interval_loads(problem.graph)
    best: _Candidate | None = None
    for shape in sorted(bounds, key=lambda s: (bounds[s], s)):
        if best is not None and bounds[shape] >= best.prediction.step_time:
            break
        for layout in layouts(problem, *shape):
            for partition, by in _partitions(problem, layout, loads, solver, deadline):
                candidate = _price(problem, layout, partition, by)
                if _fits(problem, candidate) and _better(candidate, best):
                    best = candidate
    if best is None:
        raise InfeasibleError(_why_infeasible(problem, loads, solver))
    return best


def _partitions(
    problem: Problem,
    layout: Layout,
    loads: StageLoad,
    solver: SolverName,
    deadline: float,
) -> list[tuple[Partition, str]]:
    num_stages = len(layout.stage_ranks)
    if solver == "uniform":
        return [(uniform.solve(len(problem.graph.layers), num_stages), solver)]
    if solver == "parameters":
        return [(parameters.solve(loads.weight_bytes, num_stages), solver)]
    found = [] if solver == "ilp" else [(p, "dp") for p in chain.solve(problem, layout, loads)]
    branching = num_stages > 1 and not is_chain(problem.graph)
    if solver == "ilp" or (solver == "auto" and branching):
        partition = ilp.solve(problem, layout, found[0][0] if found else None, deadline)
        found += [(partition, "ilp")] if partition is not None else []
    return found


def _price(problem: Problem, layout: Layout, partition: Partition, solver: str) -> _Candidate:
    stages, syncs = predict(problem, layout, partition)
    schedule = make_schedule(layout.schedule, layout.stage_ranks, problem.num_microbatches)
    timeline = simulate(
        schedule,
        layout.stage_ranks,
        stages,
        syncs,
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
    )
    prediction = Prediction(
        step_time=timeline.makespan, bubble=timeline.bubble, stages=stages, syncs=syncs
    )
    return _Candidate(layout, partition, prediction, orders_of(schedule), solver)


def _fits(problem: Problem, candidate: _Candidate) -> bool:
    peaks = [stage.peak_bytes for stage in candidate.prediction.stages]
    return max(peaks) <= problem.cluster.memory_bytes


def _better(candidate: _Candidate, best: _Candidate | None) -> bool:
    if best is None:
        return True

    def rank(c: _Candidate) -> tuple[float, int]:
        return c.prediction.step_time, max(s.peak_bytes for s in c.prediction.stages)

    return rank(candidate) < rank(best)


def _why_infeasible(problem: Problem, loads: StageLoad, solver: SolverName) -> str:
    limit = format_bytes(problem.cluster.memory_bytes)
    needs = [
        (_least_memory(problem, layout, loads, solver), shape)
        for shape in shapes(problem)
        for layout in layouts(problem, *shape)
    ]
    least, (k, r) = min(needs)
    return (
        f"nothing fits into {limit} a GPU: the least that would do is {format_bytes(least)} "
        f"({least} bytes), with {k} stages and {r} replicas; try more memory, more GPUs, a smaller "
        "--microbatch-size, or another --optimizer"
    )


def _least_memory(problem: Problem, layout: Layout, loads: StageLoad, solver: SolverName) -> int:
    if solver in ("auto", "dp", "ilp"):
        return chain.least_memory(problem, layout, loads)
    (partition, _), *_ = _partitions(problem, layout, loads, solver, 0.0)
    return max(stage.peak_bytes for stage in predict(problem, layout, partition)[0])


def _plan(profile: Profile, problem: Problem, best: _Candidate, seconds: float) -> Plan:
    layers = problem.graph.layers
    return Plan(
        origin=Origin(
            model=profile.source.model,
            graph_hash=profile.source.graph_hash,
            profile_hash=profile_hash(profile),
            method=profile.method,
            dtype=profile.dtype,
            solver=best.solver,
            solve_seconds=seconds,
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
        orders=best.orders,
        prediction=best.prediction,
        certificate=certify(problem, best.prediction.step_time),
    )
