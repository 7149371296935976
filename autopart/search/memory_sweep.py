"""Plans for GPUs with less and less memory, from generous to impossible.

The sizes grow by equal factors. They start at the least memory that would do, and end at the peak
of a plan without any limit. A size below the least comes last.

A plan that fits also fits into more memory. Where the time limit left a longer step at more memory,
the plan of the next smaller size is taken instead. So the step never grows with memory.

All searches share the time limit. Each may take an even part of the time that is left. Behind the
limit no further size is searched: the best plan for less memory stands for it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from autopart.errors import AutopartError, InfeasibleError, NoPlanFound
from autopart.records.cluster import UNLIMITED, Cluster
from autopart.records.plan import Plan
from autopart.stopping.time_limit import deadline_in, passed, time_left


class SweepPoint(NamedTuple):
    """One memory size and its best plan."""

    memory_bytes: int
    """Memory of one GPU, in bytes."""
    plan: Plan | None
    """The best plan within it; None where nothing fits."""


def memory_sweep(
    solve_on: Callable[[Cluster, float], Plan], cluster: Cluster, count: int, time_limit: float
) -> tuple[SweepPoint, ...]:
    """The best plans for `count` memory sizes, the largest first, and one size where nothing fits.

    `solve_on` gives the best plan on a cluster within so many seconds, or raises InfeasibleError
    with the least memory. Raises AutopartError where GPUs differ or `count` is below 2. Raises
    InfeasibleError where nothing fits into any memory. Raises NoPlanFound where the time limit is
    too short for the first plan.
    """
    if cluster.gpus:
        raise AutopartError("a memory sweep is for equal GPUs; these are listed, each with its own")
    if count < 2:
        raise AutopartError(f"{count} memory sizes: there must be at least 2")
    until = deadline_in(time_limit)
    first = solve_on(_with(cluster, UNLIMITED), time_left(until) / (count + 2))
    largest = max(first.prediction.rank_peak_bytes)
    least = _least_bytes(solve_on, cluster, time_left(until) / (count + 1))
    growth = max(1.0, largest / least)
    # Step 1: sizes in a geometric row from the least memory to the unlimited peak.
    sizes = [math.ceil(least * growth ** (at / (count - 1))) for at in range(count)]
    points = [SweepPoint(least - 1, None)]
    # Step 2: solve from the least memory up. A plan that fitted before is kept while it is faster.
    for at, size in enumerate(sizes):
        below = points[-1].plan
        if below is not None and passed(until):
            points.append(SweepPoint(size, below))
            continue
        try:
            plan = solve_on(_with(cluster, size), time_left(until) / (count - at))
        except NoPlanFound:
            # A plan for less memory fits too.
            if below is None:
                raise
            plan = below
        if below is not None and below.prediction.step_time <= plan.prediction.step_time:
            plan = below
        points.append(SweepPoint(size, plan))
    return tuple(reversed(points))


def _least_bytes(
    solve_on: Callable[[Cluster, float], Plan], cluster: Cluster, seconds: float
) -> int:
    try:
        solve_on(_with(cluster, 1), seconds)
    except InfeasibleError as error:
        if error.least_bytes is None:
            raise
        return error.least_bytes
    return 1


def _with(cluster: Cluster, memory_bytes: int) -> Cluster:
    return msgspec.structs.replace(cluster, memory_bytes=memory_bytes)
