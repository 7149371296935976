"""Warm-ups: microbatches in flight on each stage before its first backward.

The warm-ups use two times: p, the busiest rank's seconds per microbatch, and t(s). A microbatch
takes t(s) seconds from its F on stage s until its backward there ends, if it never waits. A stage
is never idle only with t(s) / p microbatches in flight, so the warm-ups are ceil(a t(s) / p) for
several a. For equal stages and free sends, a = 1 gives the k - s of 1F1B.
"""

import math
from collections.abc import Iterator, Sequence

from autopart.bounds.any_order_partition import OrderProblem, stays
from autopart.schedules.actions import dealt
from autopart.solvers.orders.weight_filling import Numbers

TIGHT = 1e-9
"""A relative difference that counts as rounding."""

WARMUPS = (1.0, 1.15, 1.3, 1.5, 2.0, 3.0, None)
"""The warm-up factors a; None allows as many microbatches as the room fits."""


def warmup_of(task: OrderProblem, factor: float | None) -> tuple[int, ...]:
    """The warm-up for a factor a; as many microbatches as there are for None."""
    m = task.num_microbatches
    period = _period(task)
    if factor is None or not period:
        return (m,) * len(task.stages)
    # TIGHT keeps a whole number from being rounded up by its own rounding error.
    return tuple(max(1, min(m, math.ceil(factor * stay / period - TIGHT))) for stay in stays(task))


def falling_warmups(task: OrderProblem) -> Iterator[tuple[int, ...]]:
    """Warm-ups within the room that fall by at least one from stage to stage."""
    if len({r for own in task.stage_ranks for r in own}) < sum(map(len, task.stage_ranks)):
        return
    seen: set[tuple[int, ...]] = set()
    given = [warmup_of(task, factor) for factor in WARMUPS]
    if task.rank_starts:
        # ZB-H2's warm-ups: no rank waits between its first and its last action where stages are alike.
        behind = range(len(task.stages), 0, -1)
        given.insert(0, tuple(min(task.num_microbatches, 2 * k - 1) for k in behind))
    for warmups in given:
        limits: list[int] = []
        for stage, warmup in enumerate(warmups):
            if task.room_bytes is not None and task.stash_bytes[stage]:
                room = min(task.room_bytes[r] for r in task.stage_ranks[stage])
                warmup = max(1, min(warmup, room // task.most_kept(stage)))
            limits.append(max(1, min(warmup, limits[-1] - 1)) if limits else warmup)
        if tuple(limits) not in seen:
            seen.add(tuple(limits))
            yield tuple(limits)


def orders_of_warmup(task: OrderProblem, limits: Sequence[int]) -> Numbers:
    """The warm-up's forwards, then a backward and a forward in turn, then backwards."""
    count = task.num_microbatches
    orders: list[list[int]] = [[] for _ in range(1 + max(map(max, task.stage_ranks)))]
    for stage, ranks in enumerate(task.stage_ranks):
        for rank in ranks:
            forwards = [3 * (stage * count + m) for m in dealt(ranks, rank, count)]
            first = forwards[: limits[stage]]
            later = forwards[limits[stage] :]
            turns = [x for b, f in zip(forwards, later, strict=False) for x in (b + 1, f)]
            rest = [x + 1 for x in forwards[len(later) :]]
            orders[rank] = [*first, *turns, *rest]
    return orders


def near(limits: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Warm-ups that differ by one, on a stage or on all stages up to it."""
    for stage in range(len(limits)):
        for change in (1, -1):
            for first in dict.fromkeys((stage, 0)):
                changed = [*limits]
                for s in range(first, stage + 1):
                    changed[s] = max(1, min(most, changed[s] + change))
                if tuple(changed) != tuple(limits):
                    yield tuple(changed)


def _period(task: OrderProblem) -> float:
    """The busiest rank's compute seconds per microbatch; replicas share the microbatches."""
    busy: dict[int, float] = {}
    for stage, ranks in zip(task.stages, task.stage_ranks, strict=True):
        seconds = stage.forward_time + stage.backward_time + 2 * task.action_overhead
        for rank in ranks:
            busy[rank] = busy.get(rank, 0.0) + seconds / len(ranks)
    return max(busy.values())
