"""Orders and activation policies chosen together.

Which policies are fastest depends on the microbatches that orders keep in flight, and which orders fit
depends on the policies. So there are two steps, in turns:

    policies for orders     the fastest ones that fit with what the orders truly keep
    orders for policies     the fastest ones found within the memory that the policies leave

The start is a ladder: orders that keep few microbatches in flight and recompute little, up to orders that
keep many and recompute more. Each step of it is a plan, and its policies ask for better orders.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from autopart.activations.best_policies import best_policies
from autopart.activations.policies import StagePolicies, leaves_choice
from autopart.bounds.any_order_partition import least_step
from autopart.certificate.fastest_choices import fastest_of_orders
from autopart.errors import ScheduleError
from autopart.pricing import Decision, fits, price
from autopart.records.layouts import (
    Layout,
    Partition,
    has_virtual_stages,
    one_replica,
)
from autopart.records.plan import OrderSource
from autopart.records.problem import BIDIRECTIONAL, CLASSIC, CUSTOM, LENDING, PAIRED, Problem
from autopart.schedules.actions import Schedule, first_orders, parse_order
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.named.one_f_one_b import stage_orders, usual_warmups
from autopart.schedules.turns import in_turns
from autopart.search.incumbent import ROUNDING
from autopart.search.layout_search import LayoutSearch
from autopart.solvers.orders.of_layout import Known, on_all_ranks, order_problem
from autopart.solvers.orders.starts import Given

MOST_RUNGS = 4
"""Choices of policies whose orders are searched, for each partition."""


class Rung(NamedTuple):
    """Policies for a partition, and orders under which they fit."""

    bound: float
    """Seconds that no order beats under these policies."""
    step: float
    """Seconds under the known orders; infinite where they do not fit."""
    known: Known


def opens_policies(problem: Problem) -> bool:
    """Whether orders and policies are chosen together. For the period, policies follow the rule."""
    return leaves_choice(problem.demands) and problem.objective == "step"


def ladder(found: LayoutSearch, layout: Layout, partition: Partition) -> list[Rung]:
    """Up to `MOST_RUNGS` choices of policies for a partition: with the smallest bounds and the shortest steps.

    Plans that fit are offered to the search.
    """
    own = msgspec.structs.replace(layout, schedule=CUSTOM)
    rungs: dict[tuple[StagePolicies, ...], Rung] = {}
    for name, orders in _orders_to_start_from(found.problem, own):
        policies = best_policies(found.problem, own, partition, orders)
        decision = _decision(found.problem, own, partition, Given(name, orders), policies)
        fitting = fits(found.problem, decision)
        step = decision.prediction.step_time if fitting else float("inf")
        if fitting:
            _offer(found, decision, name)
        if policies in rungs and rungs[policies].step <= step:
            continue
        task = order_problem(found.problem, own, partition, split=True, policies=policies)
        peaks = decision.prediction.rank_peak_bytes if fitting else None
        known = Known(peaks, Given(name, orders) if fitting else None, policies)
        rungs[policies] = Rung(least_step(task), step, known)
    able = [rung for rung in rungs.values() if rung.bound < found.best.value * (1 - ROUNDING)]
    by_bound = sorted(able, key=lambda rung: (rung.bound, rung.step))[: MOST_RUNGS // 2]
    by_step = sorted(able, key=lambda rung: (rung.step, rung.bound))
    return list({id(rung): rung for rung in (*by_bound, *by_step)}.values())[:MOST_RUNGS]


def _offer(found: LayoutSearch, decision: Decision, name: str) -> None:
    """Offer a decision, under the name of its orders where they have one."""
    if name not in KINDS:
        found.best.offer(decision, found.best.by)
        return
    named = msgspec.structs.replace(decision.layout, schedule=name)
    policies = None if name in CLASSIC else decision.policies
    found.take(named, decision.partition, found.best.by, policies)


def _orders_to_start_from(problem: Problem, layout: Layout) -> Iterator[tuple[str, Schedule]]:
    """Orders of the first replica, from few microbatches in flight to many."""
    one = one_replica(layout)
    ranks, count = one.stage_ranks, one.num_microbatches
    turn = 1
    while turn < count:
        yield f"{turn} at a time", in_turns(ranks, count, turn)
        turn *= 2
    if not has_virtual_stages(one):
        usual = usual_warmups(ranks)
        for most in range(2, min(len(ranks), count)):
            yield (
                f"warm-ups up to {most}",
                stage_orders(ranks, count, lambda stage, most=most: min(usual[stage], most)),
            )
    for name in problem.demands.schedules:
        if name in (CUSTOM, *BIDIRECTIONAL, *PAIRED, *LENDING):
            continue
        try:
            yield name, make_schedule(name, ranks, count)
        except ScheduleError:
            continue


def _decision(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    given: Given,
    policies: tuple[StagePolicies, ...],
) -> Decision:
    """The decision with these orders on all replicas, and with these policies."""
    orders = on_all_ranks(layout, given.schedule)
    own = price(problem, layout, partition, orders, policies)
    source = OrderSource(method=given.origin, step_time_without_cap=own.prediction.step_time)
    return own._replace(order_source=source)


def with_faster_policies(problem: Problem, decision: Decision) -> Decision | None:
    """A decision with own orders under other policies: faster, or fitting where it does not fit.

    None where there is none.
    """
    layout, partition, orders = decision.layout, decision.partition, decision.orders
    if orders is None or not opens_policies(problem):
        return None
    step = decision.prediction.step_time if fits(problem, decision) else float("inf")
    own = first_orders(layout.stage_ranks, orders)
    choice = fastest_of_orders(problem, layout, partition, own, step)
    if choice.policies is None or choice.step >= step * (1 - ROUNDING):
        return None
    other = price(problem, layout, partition, orders, choice.policies)
    if not fits(problem, other):
        return None
    return other._replace(order_source=_source_again(problem, decision, other))


def _source_again(problem: Problem, decision: Decision, other: Decision) -> OrderSource:
    """The source of the same orders, where policies have changed."""
    source, step = decision.order_source, other.prediction.step_time
    assert source is not None
    if source.orders_without_cap:
        free = tuple(map(parse_order, source.orders_without_cap))
        layout, partition = other.layout, other.partition
        faster = price(problem, layout, partition, free, other.policies).prediction.step_time
        if faster < step:
            return msgspec.structs.replace(source, step_time_without_cap=faster)
    return msgspec.structs.replace(source, step_time_without_cap=step, orders_without_cap=())
