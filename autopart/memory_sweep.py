"""Plans as the memory of a GPU goes from generous to impossible.

The sizes grow by like factors from the least that would do to what the plan without any limit holds; one
below the least comes last. A plan that fits fits into more memory too, so where the time limit left a longer step with
more memory, the plan of the size below is taken: the step never grows with memory.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from autopart.cluster import Cluster
from autopart.errors import AutopartError, InfeasibleError
from autopart.plan import Plan

UNLIMITED = 1 << 60
"""Bytes: more than any model holds."""


class SweepPoint(NamedTuple):
    """One memory size, and the best plan with it; None where nothing fits."""

    memory_bytes: int
    plan: Plan | None


def memory_sweep(
    solve_on: Callable[[Cluster], Plan], cluster: Cluster, count: int
) -> tuple[SweepPoint, ...]:
    """`count` memory sizes of equal GPUs, the largest first, and one into which nothing fits.

    `solve_on` gives the best plan on a cluster, or raises InfeasibleError with the least memory.
    Raises AutopartError where GPUs differ, InfeasibleError where nothing fits into any memory.
    """
    if cluster.gpus:
        raise AutopartError("a memory sweep is for equal GPUs; these are listed, each with its own")
    if count < 2:
        raise AutopartError(f"{count} memory sizes: there must be at least 2")
    largest = max(solve_on(_with(cluster, UNLIMITED)).prediction.rank_peak_bytes)
    least = _least_bytes(solve_on, cluster)
    growth = max(1.0, largest / least)
    sizes = [math.ceil(least * growth ** (at / (count - 1))) for at in range(count)]
    points = [SweepPoint(least - 1, None)]
    for size in sizes:
        plan, below = solve_on(_with(cluster, size)), points[-1].plan
        if below is not None and below.prediction.step_time <= plan.prediction.step_time:
            plan = below
        points.append(SweepPoint(size, plan))
    return tuple(reversed(points))


def _least_bytes(solve_on: Callable[[Cluster], Plan], cluster: Cluster) -> int:
    try:
        solve_on(_with(cluster, 1))
    except InfeasibleError as error:
        if error.least_bytes is None:
            raise
        return error.least_bytes
    return 1


def _with(cluster: Cluster, memory_bytes: int) -> Cluster:
    return msgspec.structs.replace(cluster, memory_bytes=memory_bytes)
