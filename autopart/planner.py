"""A profile and a cluster in, a checked plan out: the only crossroads.

It turns a user's words into a problem, lets the search find the fastest decision and its lower bound,
and writes both down as a plan; where nothing fits, it says the least memory that would do.
"""

import difflib
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from autopart import __version__
from autopart.certificate import certificate, own_size, problem_of
from autopart.cluster import Cluster, check_cluster, num_gpus
from autopart.errors import AutopartError, InfeasibleError
from autopart.graph import positions
from autopart.layouts import Layout
from autopart.plan import TREATED, Origin, Plan, SearchedSize, Stage, orders_of
from autopart.problem import (
    CLASSIC,
    CUSTOM,
    OBJECTIVES,
    OFFLOADING,
    RECOMPUTING,
    SCHEDULES,
    Demands,
    Pin,
    Problem,
)
from autopart.profile import Profile
from autopart.schedule import Schedule
from autopart.schedules import KINDS, make_schedule
from autopart.search import SOLVERS, Outcome, SolverName
from autopart.shortage import why_infeasible
from autopart.size_search import NOTHING, SizeOutcomes, search_sizes, value_of
from autopart.sizes import Sized, at_sizes, samples
from autopart.training import make_training
from autopart.way_demands import checked_ways

Word = TypeVar("Word", bound=str)

DEFAULT_SCHEDULE = ",".join(CLASSIC)
"""What every framework runs, and what costs no more than profiles say: none splits a backward."""


def solve(
    profile: Profile | Sequence[Profile],
    cluster: Cluster,
    *,
    num_microbatches: int | None = None,
    global_batch: int | None = None,
    microbatch_sizes: Sequence[int] = (),
    objective: str = "step",
    schedule: str = DEFAULT_SCHEDULE,
    solver: str = "auto",
    num_stages: int | None = None,
    num_replicas: int | None = None,
    replicas_per_stage: bool = False,
    stages_per_rank: int | None = None,
    pins: Mapping[str, int] | None = None,
    same_stage: Sequence[Sequence[str]] = (),
    different_stage: Sequence[Sequence[str]] = (),
    recompute: str = "never",
    recompute_layers: Sequence[str] = (),
    selective_layers: Sequence[str] = (),
    keep_layers: Sequence[str] = (),
    offload: str = "never",
    offload_layers: Sequence[str] = (),
    offload_optimizer: str = "never",
    optimizer: str = "adamw",
    precision: str | None = None,
    gradient_dtype: str | None = None,
    zero1: bool = False,
    time_limit: float = 60.0,
) -> Plan:
    """The best plan found for a profile on a cluster, with its certificate.

    Several profiles of one model, taken at different microbatch sizes, have all their sizes searched;
    `microbatch_sizes` names the sizes instead, and those without a profile are scaled from the nearest
    (autopart/sizes.py). `objective` is `step`, the simulated step, or `bottleneck`, the seconds for which
    a step keeps its busiest rank occupied.
    `global_batch` counts samples of one optimizer step, `num_microbatches` microbatches of the
    profile's size; give one of them or neither. `replicas_per_stage` lets each stage have replicas of
    its own; else all have as many, `num_replicas` where that is given. `schedule` is "auto" (every
    schedule, and orders of the plan's own), one name, or several with commas between; `stages_per_rank`
    fixes how many stages a rank has, where a schedule leaves a choice. `pins` puts layers on stages
    (counted from 0); the groups of `same_stage` must share a stage, those of `different_stage` must
    not. `recompute` says whether layers give their stash up and run their forward again in backward:
    `never`, `auto` (those that make the step fastest within the memory), `selective` (all, but only their
    cheap part) or `always`; `offload` whether the stash of layers waits on the host: `never`, `auto` or
    `always`. `recompute_layers`, `selective_layers` and `offload_layers` do so in any case, `keep_layers`
    keep their stash. `optimizer`, `precision`, `gradient_dtype` and `zero1` are those of
    `autopart.training.make_training`. `time_limit` is in seconds; what it leaves open widens the
    certificate's gap.
    Raises InfeasibleError, naming the least memory that would do, where nothing fits.
    """
    began = time.perf_counter()
    sized = at_sizes([profile] if isinstance(profile, Profile) else profile, microbatch_sizes)
    sizes = [one.profile.microbatch_size for one in sized]
    batch = samples(sizes, num_gpus(cluster), num_microbatches, global_batch)
    problems = [
        make_problem(
            one.profile,
            cluster,
            num_microbatches=batch // one.profile.microbatch_size,
            objective=objective,
            schedule=schedule,
            num_stages=num_stages,
            num_replicas=num_replicas,
            replicas_per_stage=replicas_per_stage,
            stages_per_rank=stages_per_rank,
            pins=pins,
            same_stage=same_stage,
            different_stage=different_stage,
            recompute=recompute,
            recompute_layers=recompute_layers,
            selective_layers=selective_layers,
            keep_layers=keep_layers,
            offload=offload,
            offload_layers=offload_layers,
            offload_optimizer=offload_optimizer,
            optimizer=optimizer,
            precision=precision,
            gradient_dtype=gradient_dtype,
            zero1=zero1,
        )
        for one in sized
    ]
    found = search_sizes(problems, _solver_name(solver), began + time_limit)
    if found.best is None:
        raise why_infeasible(problems[0], _solver_name(solver))
    return _plan(sized, problems, found, began)


def make_problem(
    profile: Profile,
    cluster: Cluster,
    *,
    num_microbatches: int,
    objective: str = "step",
    schedule: str = DEFAULT_SCHEDULE,
    num_stages: int | None = None,
    num_replicas: int | None = None,
    replicas_per_stage: bool = False,
    stages_per_rank: int | None = None,
    pins: Mapping[str, int] | None = None,
    same_stage: Sequence[Sequence[str]] = (),
    different_stage: Sequence[Sequence[str]] = (),
    recompute: str = "never",
    recompute_layers: Sequence[str] = (),
    selective_layers: Sequence[str] = (),
    keep_layers: Sequence[str] = (),
    offload: str = "never",
    offload_layers: Sequence[str] = (),
    offload_optimizer: str = "never",
    optimizer: str = "adamw",
    precision: str | None = None,
    gradient_dtype: str | None = None,
    zero1: bool = False,
) -> Problem:
    """The problem as the solvers are told it; raises AutopartError on an unknown word."""
    if replicas_per_stage and objective == "bottleneck":
        raise AutopartError(
            "the bottleneck is minimised over stages with as many replicas each; leave out replicas "
            "of their own, or minimise the step"
        )
    counts = (
        ("stages", num_stages),
        ("replicas", num_replicas),
        ("stages a rank", stages_per_rank),
    )
    for what, count in counts:
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
        stages_per_rank=stages_per_rank,
        schedules=_schedules(schedule, objective, replicas_per_stage=replicas_per_stage),
        pins=tuple(Pin(layer=name, stage=stage) for name, stage in (pins or {}).items()),
        same_stage=tuple(map(tuple, same_stage)),
        different_stage=tuple(map(tuple, different_stage)),
        recompute=_known(recompute, RECOMPUTING, "--recompute"),
        offload=_known(offload, OFFLOADING, "--offload"),
        recompute_layers=tuple(recompute_layers),
        selective_layers=tuple(selective_layers),
        offload_layers=tuple(offload_layers),
        offload_optimizer=_known(offload_optimizer, OFFLOADING, "--offload-optimizer"),
        keep_layers=tuple(keep_layers),
    )
    _check_pins(profile, demands)
    demands = checked_ways(profile.graph, cluster, demands)
    return Problem(
        graph=profile.graph,
        cluster=cluster,
        microbatch_size=profile.microbatch_size,
        num_microbatches=num_microbatches,
        training=make_training(profile.dtype, optimizer, precision, gradient_dtype, zero1=zero1),
        demands=demands,
        objective=_known(objective, OBJECTIVES, "objective"),
    )


def _known(word: str, known: Sequence[Word], what: str) -> Word:
    for one in known:
        if word == one:
            return one
    raise AutopartError(f"unknown {what} '{word}'; known: {', '.join(known)}")


def _schedules(typed: str, objective: str, *, replicas_per_stage: bool) -> tuple[str, ...]:
    """The schedules that "1f1b,zb-h1" names, or "auto", which is all and orders of the plan's own."""
    plain = replicas_per_stage or objective == "bottleneck"
    able = CLASSIC if plain else SCHEDULES
    names = able if typed == "auto" else parse_schedules(typed)
    for name in names:
        if name not in able:
            what = "replicas of their own" if replicas_per_stage else "the bottleneck"
            raise AutopartError(f"for {what}, schedule is one of {', '.join(able)}, not '{name}'")
    return names


def parse_schedules(typed: str) -> tuple[str, ...]:
    """Read "auto" or names with commas between; raises AutopartError listing the known ones."""
    if typed == "auto":
        return SCHEDULES
    names = tuple(dict.fromkeys(name.strip() for name in typed.split(",")))
    for name in names:
        if name in KINDS and KINDS[name].bidirectional:
            raise AutopartError(
                f"schedule '{name}' holds every layer on two ranks, which no plan can say; "
                "docs/schedules.md says what it costs"
            )
        if name not in KINDS:
            known = ", ".join(name for name in SCHEDULES if name != CUSTOM)
            raise AutopartError(f"unknown schedule '{name}'; known: auto, {known}")
    return names


def known_schedules(typed: str) -> str:
    """What was typed, where `parse_schedules` can read it."""
    parse_schedules(typed)
    return typed


def _check_pins(profile: Profile, demands: Demands) -> None:
    known = positions(profile.graph)
    groups = (
        *demands.same_stage,
        *demands.different_stage,
        demands.recompute_layers,
        demands.selective_layers,
        demands.offload_layers,
        demands.keep_layers,
    )
    for name in (*(pin.layer for pin in demands.pins), *itertools.chain(*groups)):
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or list(known)[:3]
            raise AutopartError(f"the profile knows no layer '{name}'; near it: {', '.join(near)}")
    for pin in demands.pins:
        if pin.stage < 0 or (demands.num_stages is not None and pin.stage >= demands.num_stages):
            raise AutopartError(
                f"layer '{pin.layer}' is pinned to stage {pin.stage}; stages count from 0"
                + (f" to {demands.num_stages - 1}" if demands.num_stages else "")
            )


def baselines(profile: Profile | Sequence[Profile], plan: Plan) -> dict[str, Plan | str]:
    """What uniform layers and balanced parameters would give with the plan's stages and replicas
    (any, where they are one stage), without its pins, at its microbatch size: a plan, or why there
    is none. `profile` is what the plan was solved for."""
    own = own_size(plan, profile)
    found: dict[str, Plan | str] = {}
    names: tuple[SolverName, ...] = ("uniform", "parameters")
    for name in names:
        began = time.perf_counter()
        demands = msgspec.structs.replace(
            plan.demands, pins=(), same_stage=(), different_stage=(), replicas_per_stage=False
        )
        problem = msgspec.structs.replace(problem_of(plan, own.profile.graph), demands=demands)
        try:
            outcomes = search_sizes([problem], name, began)
        except InfeasibleError as error:
            found[name] = str(error)
            continue
        if outcomes.best is None:
            found[name] = str(why_infeasible(problem, name))
        else:
            found[name] = _plan([own], [problem], outcomes, began)
    return found


def _solver_name(solver: str) -> SolverName:
    for known in SOLVERS:
        if solver == known:
            return known
    raise AutopartError(f"unknown solver '{solver}'; known: {', '.join(SOLVERS)}")


def _plan(
    sized: Sequence[Sized], problems: Sequence[Problem], found: SizeOutcomes, began: float
) -> Plan:
    assert found.best is not None
    own, problem, outcome = sized[found.best], problems[found.best], found.outcomes[found.best]
    assert outcome.best is not None
    layers, best = problem.graph.layers, outcome.best
    return Plan(
        origin=Origin(
            model=own.profile.source.model,
            graph_hash=own.profile.source.graph_hash,
            profile_hash=own.profile_hash,
            method=own.profile.method,
            dtype=own.profile.dtype,
            solver=outcome.solver,
            solve_seconds=time.perf_counter() - began,
            autopart=__version__,
            orders=best.order_source,
        ),
        cluster=problem.cluster,
        microbatch_size=problem.microbatch_size,
        num_microbatches=problem.num_microbatches,
        training=problem.training,
        demands=problem.demands,
        objective=problem.objective,
        sizes=_searched(sized, found.outcomes),
        stages=tuple(
            Stage(
                layers=tuple(layers[at].name for at in members),
                ranks=ranks,
                optimizer_on_host=ways.optimizer_on_host,
                **{way: tuple(layers[at].name for at in getattr(ways, way)) for way in TREATED},
            )
            for members, ranks, ways in zip(
                best.partition, best.layout.stage_ranks, best.ways, strict=True
            )
        ),
        schedule=best.layout.schedule,
        orders=orders_of(best.orders or _named_orders(best.layout)),
        prediction=best.prediction,
        certificate=certificate(
            problem, value_of(problem, outcome), _searched(sized, found.outcomes)
        ),
    )


def _named_orders(layout: Layout) -> Schedule:
    return make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)


def _searched(sized: Sequence[Sized], outcomes: Sequence[Outcome]) -> tuple[SearchedSize, ...]:
    return tuple(
        SearchedSize(
            microbatch_size=one.profile.microbatch_size,
            profile_hash=one.profile_hash,
            profiled_size=one.profiled_size,
            lower_bound=outcome.lower_bound if outcome.lower_bound < NOTHING else None,
            simulated=outcome.simulated,
        )
        for one, outcome in zip(sized, outcomes, strict=True)
    )
