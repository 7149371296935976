"""A plan's own orders, for the partitions that promise the fastest ones."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.bounds.any_order_partition import least_step
from autopart.cost.cuts import partition_of
from autopart.errors import InfeasibleError
from autopart.pricing import Decision, fits
from autopart.records.layouts import Partition, StageRanks, layouts
from autopart.records.problem import CUSTOM
from autopart.schedules.actions import first_orders
from autopart.search.aimed_partitions import Candidate, aimed_partitions, paths_near
from autopart.search.incumbent import ROUNDING
from autopart.search.joint_choices import (
    ladder,
    opens_policies,
    with_faster_policies,
)
from autopart.search.layout_search import LayoutSearch
from autopart.search.likely_assignments import likely_layouts
from autopart.search.objectives import Path
from autopart.search.open_layout import OpenLayout
from autopart.search.order_decisions import with_orders
from autopart.solvers.orders.of_layout import Known, order_problem, orders_of_layout
from autopart.solvers.orders.starts import Given
from autopart.solvers.own_partitions import best_paths
from autopart.stopping.time_limit import passed, time_left

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

TURNS = 3
"""Times that orders are searched for the policies of one partition, in turns with policies for orders."""

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
    named = [one for each in _fastest_named(found) for one in _candidates(found, each)]
    until = _later(found, SHARE_OF_AIMS)
    first = {candidate.layout: (candidate, path) for candidate, path in reversed(small)}
    ahead = sorted(first.values(), key=lambda each: each[0].bound)
    aimed = aimed_partitions(found, _with_rungs(found, ahead), until, AIMED)
    chosen = list(dict.fromkeys([*aimed, *named]))
    # Step 2: a first look at each of them, with equal shares of the time.
    looks_end = _later(found, SHARE_OF_FIRST_LOOKS)
    open_ones: list[_Offered] = []
    for place, one in enumerate(chosen):
        now = time.perf_counter()
        if _may_gain(found, one):
            deadline = now + (looks_end - now) / (len(chosen) - place)
            own = _offer_own_orders(found, one, deadline, SOME_ACTIONS)
            if own is not None and not own.ended:
                open_ones.append(own)
    # Step 3: the rest of the time for the fastest ones whose search did not end by itself.
    open_ones.sort(key=lambda each: each.step)
    for place, each in enumerate(open_ones[:FAVOURITES]):
        if _may_gain(found, each.candidate):
            deadline = found.deadline if place else _later(found, 2 / 3)
            _offer_own_orders(found, each.candidate, deadline, math.inf)


def _with_rungs(
    found: LayoutSearch, ahead: Sequence[tuple[Candidate, Path]]
) -> list[tuple[Candidate, Path]]:
    """The partitions that get a glance, each with several choices of policies where these are open."""
    if not opens_policies(found.problem):
        return list(ahead[:GLANCES])
    return [
        (one, path)
        for candidate, path in ahead[: GLANCES // 2]
        for one in _on_rungs(found, candidate)
    ]


def _on_rungs(found: LayoutSearch, candidate: Candidate) -> list[Candidate]:
    """A candidate under the policies of each rung."""
    own = msgspec.structs.replace(candidate.layout, schedule=CUSTOM)
    rungs = ladder(found, own, candidate.partition)
    return [Candidate(rung.bound, own, candidate.partition, rung.known) for rung in rungs]


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


def _candidates(found: LayoutSearch, decision: Decision) -> list[Candidate]:
    """A decision with a named schedule, and its partition under other policies where these are open."""
    layout, partition = decision.layout, decision.partition
    policies = decision.policies if opens_policies(found.problem) else None
    task = order_problem(found.problem, layout, partition, split=True, policies=policies)
    known = Known(decision.prediction.rank_peak_bytes, policies=policies)
    first = Candidate(least_step(task), layout, partition, known)
    if not opens_policies(found.problem):
        return [first]
    others = _on_rungs(found, first)
    return others if policies is None else [first, *others]


def _later(found: LayoutSearch, share: float) -> float:
    """The moment when a share of the time that is left will have passed."""
    return time.perf_counter() + share * time_left(found.deadline)


def _may_gain(found: LayoutSearch, one: Candidate) -> bool:
    """Whether there is time, and other orders of a partition may be faster than the best step."""
    return not found.out_of_time() and one.bound < found.best.value * (1 - ROUNDING)


class _Offered(NamedTuple):
    """The fastest decision of a partition with its own orders, as a candidate for more time."""

    step: float
    ended: bool
    """Whether the search for its orders ended by itself."""
    candidate: Candidate


def _offer_own_orders(
    found: LayoutSearch, one: Candidate, deadline: float, actions: float
) -> _Offered | None:
    """Optimize the orders of a partition, and its policies, in turns; None where no order fits."""
    best: _Offered | None = None
    for _ in range(TURNS):
        # Step 1: orders for the policies.
        turn = _with_orders_for(found, one, deadline, actions)
        if turn is None or (best is not None and found.objective.value(turn[0]) >= best.step):
            break
        own, ended = turn
        # Step 2: policies for the orders.
        other = with_faster_policies(found.problem, own)
        own = own if other is None else other
        if fits(found.problem, own):
            found.best.offer(own, found.best.by)
        best = _Offered(found.objective.value(own), ended, one)
        if other is None:
            break
        one = _going_on(found, own)
        if not _may_gain(found, one):
            break
    return best


def _going_on(found: LayoutSearch, own: Decision) -> Candidate:
    """A decision with own orders as the start of a search."""
    assert own.orders is not None
    layout, partition, policies = own.layout, own.partition, own.policies
    task = order_problem(found.problem, layout, partition, split=True, policies=policies)
    given = Given("policies for orders", first_orders(layout.stage_ranks, own.orders))
    known = Known(own.prediction.rank_peak_bytes, given, policies)
    return Candidate(least_step(task), layout, partition, known)


def _with_orders_for(
    found: LayoutSearch, one: Candidate, deadline: float, actions: float
) -> tuple[Decision, bool] | None:
    """The fastest orders found for a candidate's policies, and whether their search ended by itself."""
    try:
        orders = orders_of_layout(
            found.problem,
            one.layout,
            one.partition,
            split=True,
            known=one.known,
            deadline=deadline,
            actions=actions,
        )
    except InfeasibleError:
        # The room for stash is counted without knowing the orders.
        return None
    own = with_orders(found, one.layout, one.partition, orders, one.known.policies)
    return own, orders.ended
