"""A plan by hand whose stages have tensor degrees of their own: cuts and degrees are given."""

import dataclasses
import itertools
from collections.abc import Sequence

import msgspec

from autopart.errors import AutopartError, PlanError
from autopart.pricing import Decision, minimised
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.group_choice import variant_of
from autopart.records.groups_on_nodes import check_fits_nodes
from autopart.records.microbatch_sizes import at_sizes
from autopart.records.plan import Plan, check_plan
from autopart.records.problem import Problem
from autopart.records.profile import Profile
from autopart.records.rank_group import StageDegrees, tensor_group
from autopart.search.candidates import SearchedProblem
from autopart.search.demands import make_problem
from autopart.search.incumbent import Outcome
from autopart.search.options import PER_STAGE, SolveOptions
from autopart.search.written_plan import searched_sizes, written_plan
from autopart.stage_degrees.least import least_step_of_degrees
from autopart.stage_degrees.placement import placements
from autopart.stage_degrees.pricing import DegreesPricer
from autopart.stage_degrees.problem import problem_of_degrees
from autopart.text import counted


def plan_of_degrees(
    profile: Profile,
    cluster: Cluster,
    cuts: Sequence[int],
    degrees: Sequence[int],
    options: SolveOptions,
) -> Plan:
    """The plan with given cuts and a tensor degree for each stage, with its prediction.

    `cuts` are positions in the profile's layers at which stages 1, 2, ... begin. `degrees` has one entry
    more, and at least two different ones. `options` gives the batch, the schedule, the replicas (1 where it
    says none), sequence parallelism ("on", or else off) and the rest. Of the placements on GPUs the faster one is taken. The lower bound
    is the one at a glance. Memory limits are not checked.

    Raises AutopartError where the profile or a node lacks a degree, where the GPUs are too few, and
    where the plan contradicts itself.
    """
    count = len(profile.graph.layers)
    edges = [0, *cuts, count]
    if edges != sorted(set(edges)) or len(degrees) != len(cuts) + 1:
        raise AutopartError(
            f"{counted(len(degrees), 'stage')} need {len(degrees) - 1} rising cuts from 1 to {count - 1}, not "
            f"{list(cuts)}"
        )
    of_gpus = _problem(profile, cluster, options)
    split = options.sequence_parallel == "on"
    for degree in degrees:
        group = tensor_group(degree, sequence_parallel=split)
        variant_of(profile, group)
        check_fits_nodes(group, of_gpus.cluster)
    chosen = StageDegrees(degrees=tuple(sorted(set(degrees))), sequence_parallel=split)
    problem = problem_of_degrees(of_gpus, profile, chosen)
    partition = tuple(tuple(range(start, end)) for start, end in itertools.pairwise(edges))
    replicas = options.num_replicas or 1
    found = placements(num_gpus(cluster), tuple(degrees), replicas)
    if not found:
        raise PlanError(
            f"{counted(replicas, 'replica')} of degrees {'/'.join(map(str, degrees))} need "
            f"{counted(replicas * sum(degrees), 'GPU')} in groups, and the cluster has {num_gpus(cluster)}"
        )
    schedule = of_gpus.demands.schedules[-1]

    def value(decision: Decision) -> float:
        return minimised(of_gpus, decision.prediction, decision.layout.stage_ranks)

    pricer = DegreesPricer(problem)
    best = min((pricer.price(one, schedule, partition) for one in found), key=value)
    sized = at_sizes([profile], ())[0]
    searched = [SearchedProblem(sized, msgspec.UNSET, of_gpus, problem)]
    outcome = Outcome(best, "auto", least_step_of_degrees(problem), 0)
    plan = written_plan(searched, 0, best, searched_sizes(searched, [outcome]), of_gpus.cluster)
    check_plan(plan)
    return plan


def _problem(profile: Profile, cluster: Cluster, options: SolveOptions) -> Problem:
    """The problem with one GPU per rank, whose demands say that stages choose their degrees."""
    batch = options.num_microbatches
    if batch is None:
        batch = (options.global_batch or 0) // profile.microbatch_size
    if batch < 1:
        raise AutopartError("a plan by hand needs num_microbatches or global_batch")
    return make_problem(profile, cluster, batch, dataclasses.replace(options, tensor=PER_STAGE))
