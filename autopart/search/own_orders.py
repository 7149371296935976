"""A plan's own orders, for the partitions that promise the fastest ones."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.bounds.any_order_partition import least_step
from autopart.cost.cuts import partition_of
from autopart.errors import InfeasibleError
from autopart.pricing import Decision, fits, price, simulated
from autopart.records.layouts import Layout, Partition, StageRanks, layouts
from autopart.records.plan import OrderSource, orders_of
from autopart.records.problem import CUSTOM
from autopart.search.aimed_partitions import Candidate, aimed_partitions, paths_near
from autopart.search.incumbent import ROUNDING
from autopart.search.layout_search import LayoutSearch, OpenLayout
from autopart.search.likely_assignments import likely_layouts
from autopart.search.objectives import Path
from autopart.solvers.orders.of_layout import Known, order_problem, orders_of_layout
from autopart.solvers.orders.optimizer import OrderResult
from autopart.solvers.own_partitions import best_paths
from autopart.stopping.time_limit import passed, time_left
from autopart.units import format_time

SOME_ACTIONS = 1_000_000
"""Actions simulated or listed for a first look at one partition's orders: about 1 s."""

NAMED = 6
"""Decisions with a named schedule whose orders are optimized, the fastest ones."""

GLANCES = 10
"""Placements whose partition with the smallest bound gets lists by target times."""

AIMED = 3
"""Of these, the partitions whose cuts move and whose orders are optimized."""

SHARE_OF_AIMS = 0.3
"""The share of the time that is left then for these."""

DESCENTS = 4
"""Partitions with small bounds on one placement from which named schedules start."""

FAVOURITES = 2
"""Of all these, the partitions whose orders get the rest of the time."""

SHARE_OF_PARTITIONS = 0.4
"""The share of the time for finding partitions."""

SHARE_OF_FIRST_LOOKS = 0.4
"""The share of the time that is left then for the first looks."""


def propose_own_orders(found: LayoutSearch, places: Sequence[OpenLayout]) -> None:
    """Optimize the orders of promising partitions, and offer them to a search.

    `places` are the layouts whose bounds leave better plans. A search for orders ends by itself
    after many rounds without a better step. So the time limit counts where the orders are long, and
    else equal problems get equal orders.
    """
    # Step 1: partitions with small bounds, and the fastest decisions with named schedules.
    small = _small_bounds(found, places)
    named = [_candidate(found, decision) for decision in _fastest_named(found)]
    until = _later(found, SHARE_OF_AIMS)
    first = {candidate.layout: (candidate, path) for candidate, path in reversed(small)}
    ahead = sorted(first.values(), key=lambda each: each[0].bound)
    aimed = aimed_partitions(found, ahead[:GLANCES], until, AIMED)
    chosen = list(dict.fromkeys([*aimed, *named]))
    # Step 2: a first look at each of them, with equal shares of the time.
    looks_end = _later(found, SHARE_OF_FIRST_LOOKS)
    open_ones: list[tuple[float, Candidate]] = []
    for place, one in enumerate(chosen):
        now = time.perf_counter()
        if _may_gain(found, one):
            deadline = now + (looks_end - now) / (len(chosen) - place)
            own = _offer_own_orders(found, one, deadline, SOME_ACTIONS)
            if own is not None and not own.ended:
                open_ones.append((own.step, one))
    # Step 3: the rest of the time for the fastest ones whose search did not end by itself.
    open_ones.sort(key=lambda each: each[0])
    for place, (_, one) in enumerate(open_ones[:FAVOURITES]):
        if _may_gain(found, one):
            deadline = found.deadline if place else _later(found, 2 / 3)
            _offer_own_orders(found, one, deadline, math.inf)


def _fastest_named(found: LayoutSearch) -> list[Decision]:
    """The fastest decisions with named schedules, each partition on its ranks once."""
    fastest: dict[tuple[StageRanks, Partition], Decision] = {}
    decisions = found.best_of_layout.values()
    for decision in sorted(decisions, key=found.objective.value):
        if len(decision.layout.stage_ranks) > 1:
            fastest.setdefault((decision.layout.stage_ranks, decision.partition), decision)
    return list(fastest.values())[:NAMED]


def _small_bounds(
    found: LayoutSearch, places: Sequence[OpenLayout]
) -> list[tuple[Candidate, Path]]:
    """Partitions with small bounds under every order, the smallest first.

    On each placement, named schedules descend from them.
    """
    until, seen = _later(found, SHARE_OF_PARTITIONS), set[StageRanks]()
    candidates: list[tuple[Candidate, Path]] = []
    for place in sorted(places, key=lambda place: place.bound):
        for layout in likely_layouts(found.problem, place.layout, None):
            if place.bound >= found.best.value or passed(until):
                break
            ranks = layout.stage_ranks
            if ranks in seen or len(ranks) == 1:
                continue
            seen.add(ranks)
            # Step 1: partitions on this placement, by their bounds.
            own = msgspec.structs.replace(layout, schedule=CUSTOM)
            small = best_paths(found.problem, own, found.cuts, most=DESCENTS)
            candidates += [
                (Candidate(bound, own, partition_of(found.cuts, path)), path)
                for bound, path in small
            ]
            # Step 2: the named schedules that run on it.
            for schedule in _named_on(found, ranks) if small else ():
                if passed(until):
                    break
                named = msgspec.structs.replace(layout, schedule=schedule)
                for _, path in small:
                    found.descend(named, [path], lambda here: paths_near(found, here))
    return sorted(candidates, key=lambda each: each[0].bound)


def _named_on(found: LayoutSearch, stage_ranks: StageRanks) -> list[str]:
    """The named schedules that the demands allow on these ranks."""
    num_groups, replicas = len(set(stage_ranks)), len(stage_ranks[0])
    return [
        layout.schedule
        for layout in layouts(found.problem, num_groups, replicas)
        if layout.schedule != CUSTOM and _places(layout.stage_ranks) == _places(stage_ranks)
    ]


def _places(stage_ranks: StageRanks) -> tuple[int, ...]:
    """The place of each stage, where ranks are numbered by their first stages."""
    groups = list(dict.fromkeys(stage_ranks))
    return tuple(groups.index(ranks) for ranks in stage_ranks)


def _candidate(found: LayoutSearch, decision: Decision) -> Candidate:
    layout, partition = decision.layout, decision.partition
    task = order_problem(found.problem, layout, partition, split=True)
    known = Known(peak_bytes=decision.prediction.rank_peak_bytes)
    return Candidate(least_step(task), layout, partition, known)


def _later(found: LayoutSearch, share: float) -> float:
    """The moment when a share of the time that is left will have passed."""
    return time.perf_counter() + share * time_left(found.deadline)


def _may_gain(found: LayoutSearch, one: Candidate) -> bool:
    """Whether there is time, and other orders of a partition may be faster than the best step."""
    return not found.out_of_time() and one.bound < found.best.value * (1 - ROUNDING)


class _Offered(NamedTuple):
    """The step of a partition with its own orders, and whether their search ended by itself."""

    step: float
    ended: bool


def _offer_own_orders(
    found: LayoutSearch, one: Candidate, deadline: float, actions: float
) -> _Offered | None:
    """Optimize the orders of a partition and offer them; None where no order fits."""
    layout, partition = one.layout, one.partition
    try:
        orders = orders_of_layout(
            found.problem,
            layout,
            partition,
            split=True,
            known=one.known,
            deadline=deadline,
            actions=actions,
        )
    except InfeasibleError:
        # The room for stash is counted without knowing the orders.
        return None
    own = with_orders(found, layout, partition, orders)
    if fits(found.problem, own):
        found.best.offer(own, found.best.by)
    return _Offered(found.objective.value(own), orders.ended)


def with_orders(
    found: LayoutSearch, layout: Layout, partition: Partition, orders: OrderResult
) -> Decision:
    """The decision with these orders, or with the named schedule that they are."""
    # The answer may be a named schedule after all.
    if orders.name != "auto":
        named = msgspec.structs.replace(layout, schedule=orders.name)
        return price(found.problem, named, partition)
    custom = msgspec.structs.replace(layout, schedule=CUSTOM)
    own = price(found.problem, custom, partition, orders.schedule)
    least, free = found.objective.value(own), orders.without_cap
    without = orders.step_time_without_cap
    if found.problem.objective == "period":
        # The search for orders has minimised a bound on the period: both are simulated here.
        without = least
        if free != orders.schedule:
            stages, syncs = own.prediction.stages, own.prediction.syncs
            cluster = found.problem.cluster
            other = simulated(cluster, custom, stages, syncs, free, "period").period
            assert other is not msgspec.UNSET
            without, free = (other, free) if other < least else (least, orders.schedule)
    source = OrderSource(
        method=_method(orders),
        step_time_without_cap=without,
        orders_without_cap=() if free == orders.schedule else orders_of(free),
    )
    return own._replace(order_source=source)


def _method(orders: OrderResult) -> str:
    """The origin of the orders, and CP-SAT's word on their bound, which nobody checks."""
    if orders.said_bound is None:
        return orders.origin
    least = format_time(orders.said_bound)
    return f"{orders.origin}, and CP-SAT says that no order of these stages takes less than {least}"
