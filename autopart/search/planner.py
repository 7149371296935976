"""The planner: a profile and a cluster in, a plan with its certificate out.

It makes a problem from the options. The search finds the best decision and its lower bound. The
planner writes both into a plan. Where nothing fits, its error names the least memory that would do.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple, Unpack

import msgspec

from autopart.certificate.plan_problem import own_entry, own_size, problem_of
from autopart.errors import AutopartError, InfeasibleError, NoPlanFound
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.group_choice import GroupChoice
from autopart.records.microbatch_sizes import at_sizes, samples
from autopart.records.plan import SOLVERS, Plan, SolverName
from autopart.records.plan_degrees import stage_groups
from autopart.records.problem import Problem
from autopart.records.profile import Profile
from autopart.records.rank_group import Shard, group_size
from autopart.search.candidates import SearchedProblem, candidate, candidates
from autopart.search.demands import make_problem
from autopart.search.group_remedies import why_none_fits
from autopart.search.infeasible import all_tried, only_partition_is_full, why_infeasible
from autopart.search.layout_search import BASELINES
from autopart.search.microbatch_sizes import NOTHING, AnyProblem, SizeOutcomes, search_sizes
from autopart.search.options import SolveKeywords, SolveOptions
from autopart.search.target_defaults import able_kinds
from autopart.search.written_plan import searched_sizes, written_plan
from autopart.stopping.ctrl_c import Interrupt, stop_on_interrupt
from autopart.stopping.time_limit import (
    GRACE,
    OutOfTime,
    check_time,
    deadline_in,
    limited,
    passed,
    time_left,
)


def solve(
    profile: Profile | Sequence[Profile], cluster: Cluster, **keywords: Unpack[SolveKeywords]
) -> Plan:
    """The best plan found for a profile on a cluster, with its certificate.

    The keywords are the fields of `autopart.search.options.SolveOptions`, which explains each.
    `solve_with_options` says more, and raises the same errors.
    """
    return solve_with_options(profile, cluster, SolveOptions(**keywords))


def solve_with_options(
    profile: Profile | Sequence[Profile], cluster: Cluster, options: SolveOptions
) -> Plan:
    """The best plan found for a profile on a cluster, with its certificate.

    Several profiles of one model at different microbatch sizes have all their sizes searched. The
    answer comes within about two seconds of `options.time_limit`. A first Ctrl-C ends the search
    with the best plan so far, in the main thread and under Python's own handler for SIGINT.

    Raises AutopartError on options that are unknown or contradict each other. Raises
    InfeasibleError where nothing fits; the error names the least memory that would do. Raises
    NoPlanFound where the search ends without a plan and without a proof that there is none. Raises
    KeyboardInterrupt where the user ends it before the first plan.
    """
    began = time.perf_counter()
    with stop_on_interrupt() as interrupt:
        return _solve(profile, cluster, options, began, interrupt)


def _solve(
    profile: Profile | Sequence[Profile],
    cluster: Cluster,
    options: SolveOptions,
    began: float,
    interrupt: Interrupt,
) -> Plan:
    deadline = began + options.time_limit
    asked = question_of(profile, cluster, options)
    searched, solver = asked.searched, asked.solver
    if all(one.of_degrees is None and only_partition_is_full(one.problem) for one in searched):
        raise why_none_fits(searched, solver, asked.plain, asked.kinds)
    found = search_sizes(asked.problems, solver, deadline)
    if found.best is not None:
        return plan_of_outcomes(asked, found, began)
    if interrupt.asked:
        raise KeyboardInterrupt
    late = passed(deadline)
    if found.certain or solver in BASELINES or (not late and all_sizes_tried(searched, found)):
        with limited(deadline):
            raise why_none_fits(searched, solver, asked.plain, asked.kinds)
    where = f" within {options.time_limit:g} s" if late else ""
    raise NoPlanFound(
        f"no plan was found{where}, and bounds do not exclude one: {found.progress}; try a larger "
        "--time-limit, more memory, or fewer choices (--stages, --replicas)"
    )


class Question(NamedTuple):
    """Everything that a search needs for a profile on a cluster."""

    searched: list[SearchedProblem]
    """A problem for each microbatch size and tensor degree."""
    solver: SolverName
    cluster: Cluster
    """The cluster, with one GPU per rank."""
    plain: Problem
    """The problem at the first microbatch size, with one GPU per rank."""
    kinds: tuple[Shard, ...]
    """The kinds of sharded state that the plan may have, by the target."""

    @property
    def problems(self) -> list[AnyProblem]:
        """The problems as the search takes them."""
        return [one.of_degrees or one.problem for one in self.searched]


def question_of(
    profile: Profile | Sequence[Profile], cluster: Cluster, options: SolveOptions
) -> Question:
    """The question that options ask for a profile on a cluster; raises AutopartError as `solve` does."""
    sized = at_sizes(
        [profile] if isinstance(profile, Profile) else profile, options.microbatch_sizes
    )
    sizes = [one.profile.microbatch_size for one in sized]
    batch = samples(sizes, num_gpus(cluster), options.num_microbatches, options.global_batch)
    # All sizes share the batch in samples, so that their steps compare; their microbatches differ.
    problems = [
        make_problem(one.profile, cluster, batch // one.profile.microbatch_size, options)
        for one in sized
    ]
    solver = _solver_name(options.solver)
    searched, first = candidates(sized, problems), problems[0]
    return Question(searched, solver, first.cluster, first, able_kinds(options.target))


def all_sizes_tried(searched: Sequence[SearchedProblem], found: SizeOutcomes) -> bool:
    """Whether a search that ended in time leaves no plan untried, where it found none."""
    pairs = list(zip(searched, found.outcomes, strict=True))
    return all_tried([one.problem for one, _ in pairs if one.of_degrees is None]) and all(
        outcome.lower_bound == NOTHING for one, outcome in pairs if one.of_degrees is not None
    )


def baselines(
    profile: Profile | Sequence[Profile], plan: Plan, *, time_limit: float = 60.0
) -> dict[str, Plan | str]:
    """The baselines for the same problem: `uniform` layers and balanced `parameters`.

    They keep the plan's demands and its microbatch size. Pins, groups and replicas of their own do
    not bind them. Each entry is a plan, or the reason why there is none. `profile` is one or all
    that the plan was solved for. After `time_limit` seconds each entry is the best split so far.
    """
    until = deadline_in(time_limit)
    own = own_size(plan, profile)
    # Neither split can follow pins, groups, or different numbers of replicas.
    demands = msgspec.structs.replace(
        plan.demands, pins=(), same_stage=(), different_stage=(), replicas_per_stage=False
    )
    # Where stages have their own degrees, the largest one needs the least memory.
    choice = GroupChoice(max(stage_groups(plan), key=group_size), own_entry(plan).zero1)
    samples, batch = own.profile.microbatch_size, plan.num_microbatches * plan.microbatch_size
    problem = msgspec.structs.replace(
        problem_of(plan, own.profile.graph),
        demands=demands,
        microbatch_size=samples,
        num_microbatches=batch // samples,
    )
    searched = candidate(own, choice, problem)
    found: dict[str, Plan | str] = {}
    names: tuple[SolverName, ...] = ("uniform", "parameters")
    for name in names:
        # Both share the time evenly, where they need it.
        share = 1.0 if found else 0.5
        with limited(deadline_in(share * time_left(until)) - GRACE):
            found[name] = _baseline(searched, plan.cluster, name)
    return found


def _baseline(own: SearchedProblem, cluster: Cluster, solver: SolverName) -> Plan | str:
    """The best plan of a solver that looks at one partition per layout, or why there is none."""
    began = time.perf_counter()
    try:
        outcomes = search_sizes([own.problem], solver, math.inf)
    except InfeasibleError as error:
        return str(error)
    if outcomes.best is not None:
        return plan_of_outcomes(Question([own], solver, cluster, own.problem, ()), outcomes, began)
    try:
        check_time()
    except OutOfTime:
        return "no plan was found in time"
    return str(why_infeasible(own.problem, solver))


def _solver_name(solver: str) -> SolverName:
    for known in SOLVERS:
        if solver == known:
            return known
    raise AutopartError(f"unknown solver '{solver}'; known: {', '.join(SOLVERS)}")


def plan_of_outcomes(asked: Question, found: SizeOutcomes, began: float) -> Plan:
    """The plan of the best candidate, for a search that began at a reading of `time.perf_counter()`."""
    assert found.best is not None
    searched = asked.searched
    outcome = found.outcomes[found.best]
    assert outcome.best is not None
    sizes = searched_sizes(searched, found.outcomes)
    plan = written_plan(searched, found.best, outcome.best, sizes, asked.cluster)
    seconds = time.perf_counter() - began
    origin = msgspec.structs.replace(plan.origin, solver=outcome.solver, solve_seconds=seconds)
    return msgspec.structs.replace(plan, origin=origin)
