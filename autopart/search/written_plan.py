"""A plan as its file has it, from a decision and the problems that were searched."""

from collections.abc import Sequence

import msgspec

from autopart.certificate.certificate import certificate
from autopart.certificate.state_actions import RankState, with_state_actions
from autopart.cost.transients import held_results
from autopart.pricing import Decision, minimised
from autopart.records.cluster import Cluster
from autopart.records.layouts import Layout
from autopart.records.plan import POLICY_LISTS, Origin, Plan, SearchedSize, Stage, orders_of
from autopart.records.profile import calibration_of
from autopart.records.rank_group import tensor_group
from autopart.records.version import __version__
from autopart.schedules.catalogue import orders_by_name
from autopart.search.candidates import SearchedProblem
from autopart.search.incumbent import Outcome
from autopart.search.microbatch_sizes import NOTHING


def written_plan(
    searched: Sequence[SearchedProblem],
    at: int,
    best: Decision,
    sizes: tuple[SearchedSize, ...],
    cluster: Cluster,
) -> Plan:
    """The plan of a decision for the problem at place `at`, on a cluster of single GPUs.

    `sizes` has the lower bounds of all problems. The plan says solver "auto" and 0 seconds.
    """
    own, problem = searched[at].sized, searched[at].problem
    return Plan(
        origin=Origin(
            model=own.profile.source.model,
            graph_hash=own.profile.source.graph_hash,
            profile_hash=own.profile_hash,
            method=own.profile.method,
            calibration=calibration_of(own.profile) or msgspec.UNSET,
            dtype=own.profile.dtype,
            own_dtypes=own.profile.own_dtypes,
            pace=own.profile.pace,
            solver="auto",
            solve_seconds=0.0,
            autopart=__version__,
            orders=best.order_source,
        ),
        cluster=cluster,
        microbatch_size=problem.microbatch_size,
        num_microbatches=problem.num_microbatches,
        group=searched[at].group,
        training=problem.training,
        demands=problem.demands,
        objective=problem.objective,
        sizes=sizes,
        stages=_stages(searched[at], best),
        schedule=best.layout.schedule,
        orders=orders_of(best.orders) if best.orders else _named_orders(best.layout),
        prediction=with_state_actions(
            best.prediction,
            RankState(own.profile, searched[at].group, cluster),
            problem,
            best.layout,
            best.partition,
            best.policies,
        ),
        certificate=certificate(
            problem,
            minimised(problem, best.prediction, best.layout.stage_ranks),
            sizes,
            [one.of_degrees or one.problem for one in searched],
        ),
    )


def _stages(own: SearchedProblem, best: Decision) -> tuple[Stage, ...]:
    layers = own.problem.graph.layers
    groups = [msgspec.UNSET] * len(best.partition)
    if own.of_degrees is not None:
        split = own.of_degrees.sequence_parallel
        groups = [tensor_group(degree, sequence_parallel=split) for degree in best.degrees]
    return tuple(
        Stage(
            layers=tuple(layers[at].name for at in members),
            ranks=ranks,
            group=group,
            held=held_results(own.problem.graph, members),
            optimizer_on_host=policies.optimizer_on_host,
            **{
                policy: tuple(layers[at].name for at in getattr(policies, policy))
                for policy in POLICY_LISTS
            },
        )
        for members, ranks, group, policies in zip(
            best.partition, best.layout.stage_ranks, groups, best.policies, strict=True
        )
    )


def _named_orders(layout: Layout) -> tuple[str, ...]:
    return orders_by_name(layout.schedule, layout.stage_ranks, layout.num_microbatches)


def searched_sizes(
    searched: Sequence[SearchedProblem], outcomes: Sequence[Outcome]
) -> tuple[SearchedSize, ...]:
    """The lower bound of each problem, as a plan has it."""
    return tuple(
        SearchedSize(
            microbatch_size=one.problem.microbatch_size,
            profile_hash=one.sized.profile_hash,
            profiled_size=one.sized.profiled_size,
            group=one.group,
            zero1=one.zero1,
            per_stage=one.per_stage,
            lower_bound=outcome.lower_bound if outcome.lower_bound < NOTHING else None,
            simulated=outcome.simulated,
        )
        for one, outcome in zip(searched, outcomes, strict=True)
    )
