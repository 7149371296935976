"""Changes on the critical path of an order that may make its step shorter.

The critical path goes from the last action back along the waiting: to the rank's previous action,
or to another rank's result. A block is a row on the path, with one rank's actions, none of which
waited for another rank. A shorter step needs another path, so some block must change. An action of
the block moves before its first or behind its last action (Nowicki and Smutnicki, Management
Science 1996; Balas and Vazacopoulos, Management Science 1998).

Nothing waits for a W, so a W also leaves the block for an idle time before or behind it. A whole
backward in a block is split, so that its result leaves earlier. A split one becomes whole where
that takes fewer seconds. Where replicas are uneven, two microbatches also change places on a rank.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from autopart.solvers.orders.action_numbers import Window
from autopart.solvers.orders.order_times import OrderTimes

NEAR = 6
"""Actions at either end of a long block that move; others are drawn."""

GAPS = 3
"""Idle times on either side of a block that its W move to."""

SLACK = 1e-9
"""A relative difference that counts as rounding."""


class Block(NamedTuple):
    """Places on a rank, the last included."""

    rank: int
    first: int
    last: int


def critical_blocks(times: OrderTimes, random: Random) -> list[Block]:
    """The blocks of a critical path, the last first. Ties between paths are drawn."""
    head, result, need, link = times.head, times.result, times.need, times.link
    slack = SLACK * times.step
    rank = _last_rank(times, slack, random)
    order = times.orders[rank]
    last = place = len(order) - 1
    blocks: list[Block] = []
    while True:
        x = order[place]
        start, source = head[x], need[x]
        waited = source < times.size and result[source] >= start - slack
        follows = place > 0 and times.end_of(order[place - 1]) >= start - slack
        if follows and not (waited and random.random() < 0.5):
            place -= 1
            continue
        blocks.append(Block(rank, place, last))
        if not waited:
            return blocks
        # The sender may have waited for its link: go to the first send in that queue.
        rank = times.rank[source]
        order, place = times.orders[rank], times.place[source]
        while link[source] >= 0 and (
            result[source] - times.sending[source] > head[source] + times.time[source] + slack
        ):
            place -= 1
            while link[order[place]] != link[source]:
                place -= 1
            source = order[place]
        last = place


def _last_rank(times: OrderTimes, slack: float, random: Random) -> int:
    ranks = [
        rank
        for rank, order in enumerate(times.orders)
        if order and times.end_of(order[-1]) + times.ends[rank] >= times.step - slack
    ]
    return random.choice(ranks)


def shift(times: OrderTimes, rank: int, source: int, target: int) -> Window | None:
    """The window that moves one action; None where it would pass an action that it needs, or that
    needs it, on its rank."""
    order = times.orders[rank]
    moving = order[source]
    if source < target:
        passed = order[source + 1 : target + 1]
        if any(moving in times.before[x] for x in passed):
            return None
        return Window(rank, source, target + 1, (*passed, moving))
    passed = order[target:source]
    if any(x in passed for x in times.before[moving]):
        return None
    return Window(rank, target, source + 1, (moving, *passed))


def neighbours(times: OrderTimes, blocks: list[Block], random: Random) -> Iterator[Window]:
    """The changes for all blocks."""
    uneven = len(set(map(len, times.task.stage_ranks))) > 1
    for block in blocks:
        yield from _turns(times, block)
        if uneven:
            yield from _exchanges(times, block)
        if block.first < block.last:
            for source, target in _shifts(times, block, random):
                window = shift(times, block.rank, source, target)
                if window is not None:
                    yield window


def _shifts(times: OrderTimes, block: Block, random: Random) -> Iterator[tuple[int, int]]:
    _, first, last = block
    inner = range(first + 1, last)
    if len(inner) > 2 * NEAR + 4:
        drawn = random.sample(inner, 4)
        inner = [*inner[:NEAR], *inner[-NEAR:], *drawn]
    # Step 1: neighbours change places at the block's ends.
    yield first, first + 1
    if last > first + 1:
        yield last, last - 1
        yield first, last
        yield last, first
    # Step 2: inner actions leave the block.
    for place in inner:
        yield place, first
        yield place, last
    # Step 3: W moves into idle times before and behind.
    yield from _into_gaps(times, block, random)


def _into_gaps(times: OrderTimes, block: Block, random: Random) -> Iterator[tuple[int, int]]:
    rank, first, last = block
    order = times.orders[rank]
    weights = [place for place in range(first, last + 1) if order[place] % 3 == 2]
    if not weights:
        return
    if len(weights) > 6:
        weights = [weights[0], weights[-1], *random.sample(weights[1:-1], 4)]
    behind = _gaps(times, rank, range(last + 1, len(order)))
    before = _gaps(times, rank, range(first - 1, 0, -1))
    for weight in weights:
        for gap in behind:
            yield weight, gap - 1
        for gap in before:
            if weight != gap:
                yield weight, gap
    if behind:
        yield first, behind[0] - 1


def _gaps(times: OrderTimes, rank: int, places: range) -> list[int]:
    """The first few places in `places` before which the rank is idle."""
    order, head = times.orders[rank], times.head
    slack = SLACK * times.step
    found: list[int] = []
    for place in places:
        if head[order[place]] > times.end_of(order[place - 1]) + slack:
            found.append(place)
            if len(found) == GAPS:
                break
    return found


def _turns(times: OrderTimes, block: Block) -> Iterator[Window]:
    """Whole backwards that are split, and split ones that become whole."""
    if not times.task.split:
        return
    rank, first, last = block
    order = times.orders[rank]
    for place in range(first, last + 1):
        x = order[place]
        if x % 3 == 1 and times.whole[x]:
            yield from _splits(times, Block(rank, place, last))
        elif x % 3 and times.saved(x - x % 3 + 1) > 0.0:
            back, weight = times.place[x - x % 3 + 1], times.place[x - x % 3 + 2]
            yield from _merges(times, rank, back, weight)


def _splits(times: OrderTimes, block: Block) -> Iterator[Window]:
    """W follows at once, at the end of the block, or at the end of the order."""
    rank, place, last = block
    order = times.orders[rank]
    back = order[place]
    for behind in dict.fromkeys((place, last, len(order) - 1)):
        actions = (back, *order[place + 1 : behind + 1], back + 1)
        yield Window(rank, place, behind + 1, actions, back)


def _merges(times: OrderTimes, rank: int, back: int, weight: int) -> Iterator[Window]:
    """The whole backward runs in the place of I, or in the place of W."""
    order = times.orders[rank]
    between = tuple(order[back + 1 : weight])
    whole = order[back]
    yield Window(rank, back, weight + 1, (whole, *between), whole)
    if between and not any(whole in times.before[x] for x in between):
        yield Window(rank, back, weight + 1, (*between, whole), whole)


def _exchanges(times: OrderTimes, block: Block) -> Iterator[Window]:
    """Two microbatches that follow each other on a rank change places on all its actions.

    This matters for uneven replicas: the two may come from other ranks, or go to other ranks.
    """
    rank, first, last = block
    order, count = times.orders[rank], times.task.num_microbatches
    sequence = list(dict.fromkeys(x // 3 % count for x in order))
    for place in dict.fromkeys((first, last)):
        here = sequence.index(order[place] // 3 % count)
        for other in (here - 1, here + 1):
            if 0 <= other < len(sequence):
                window = _exchange(times, rank, sequence[here], sequence[other])
                if window is not None:
                    yield window


def _exchange(times: OrderTimes, rank: int, one: int, other: int) -> Window | None:
    """None where the two differ in their stages on the rank, or in whole and split backwards."""
    order, count = times.orders[rank], times.task.num_microbatches
    places = [place for place, x in enumerate(order) if x // 3 % count in (one, other)]
    low, high = places[0], places[-1] + 1
    actions = list(order[low:high])
    for place in places:
        x = order[place]
        new = x + 3 * ((other if x // 3 % count == one else one) - x // 3 % count)
        if times.rank[new] != rank or times.whole[new] != times.whole[x]:
            return None
        actions[place - low] = new
    return Window(rank, low, high, tuple(actions))
