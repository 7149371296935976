"""Topological orders of blocks: `before` has for each block the blocks ahead of it."""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

RANK_SPREAD = 0.3
"""Distance by which an order near a division moves blocks, in stages, as a standard deviation."""


def depth_first_order(before: Sequence[Sequence[int]]) -> list[int]:
    """A topological order that goes on with the blocks that the last one has made ready."""
    after: list[list[int]] = [[] for _ in before]
    waiting = [len(set(row)) for row in before]
    for block, row in enumerate(before):
        for earlier in set(row):
            after[earlier].append(block)
    ready = [block for block in reversed(range(len(before))) if not waiting[block]]
    order: list[int] = []
    while ready:
        order.append(ready.pop())
        for later in reversed(after[order[-1]]):
            waiting[later] -= 1
            if not waiting[later]:
                ready.append(later)
    return order


def first_orders(before: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Topological orders that are worth a try.

    They are the blocks' own order, and depth-first orders from the start and from the end.
    """
    size = len(before)
    yield list(range(size))
    after: list[list[int]] = [[] for _ in range(size)]
    for block, row in enumerate(before):
        for earlier in row:
            after[earlier].append(block)
    yield depth_first_order(after)[::-1]
    mirrored = [[size - 1 - q for q in row] for row in reversed(after)]
    yield [size - 1 - block for block in depth_first_order(mirrored)][::-1]


def order_near(
    before: Sequence[Sequence[int]], stages: Sequence[Sequence[int]], rng: np.random.Generator
) -> list[int]:
    """A topological order that goes stage by stage, with some blocks moved near the ends."""
    size = len(before)
    rank = rng.normal(0.0, RANK_SPREAD, size)
    for index, stage in enumerate(stages):
        rank[list(stage)] += index
    after: list[list[int]] = [[] for _ in range(size)]
    waiting = [len(row) for row in before]
    for block, row in enumerate(before):
        for earlier in row:
            after[earlier].append(block)
    # Among ready blocks, the one with the lowest rank comes next.
    ready = [(float(rank[b]), b) for b in range(size) if not waiting[b]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready)[1])
        for later in after[order[-1]]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, (float(rank[later]), later))
    return order
