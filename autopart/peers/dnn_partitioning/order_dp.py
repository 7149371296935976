"""Exact dynamic program over the cuts in one order, for two kinds of device.

Symbols   n          blocks, in one order
          a[i, j]    charge for blocks i … j - 1 on the first kind of device;  b[i, j]  on the second
          k, m       devices in the first and second kind

T(m, k, j) is the smallest possible largest charge for blocks 0 … j - 1 on m and k devices. A device
may be empty, and the kinds may alternate in any pattern:

    T(m, k, 0) = 0
    T(m, k, j) = min { max( T(m, k-1, i), a[i, j] ),  max( T(m-1, k, i), b[i, j] ) :  i <= j }

It is exact since max is monotone: the best devices ahead of the last one never hurt it. O(n² k m)
time. For one order of a graph this is an upper bound. The best over all orders is the optimum,
which contiguous_division.py finds. Derivation: docs/solvers.md.
"""

from typing import NamedTuple

import numpy as np

from autopart.peers.dnn_partitioning.block_charges import TOO_MUCH, Ints


class OrderStage(NamedTuple):
    """Blocks first … last - 1 in the order, on a device in the first or second kind."""

    second: bool
    first: int
    last: int


class OrderCut(NamedTuple):
    """An optimal cut of one order: its largest charge, and its stages that are not empty."""

    largest: int
    stages: tuple[OrderStage, ...]


def cut_order(
    first: Ints, second: Ints, num_first: int, num_second: int, limit: int = TOO_MUCH
) -> OrderCut | None:
    """The best cut for charges first[i, j] and second[i, j], if its largest charge is below
    `limit`.

    The only pairs i, j looked at have a charge below the limit: they lie in a band along i = j.
    """
    bands = [_band(load, limit) for load in (first, second)]
    width = max(len(band) for band in bands)
    size = len(first)
    behind = np.arange(size)[None, :] - np.arange(width)[:, None]
    start = np.full(size, TOO_MUCH)
    start[0] = 0
    best: dict[tuple[int, int], Ints] = {(0, 0): start}
    came: dict[tuple[int, int], tuple[Ints, Ints]] = {}
    # T(m, k, ·) from T(m, k - 1, ·) and T(m - 1, k, ·): whole rows at a time.
    for m in range(num_second + 1):
        for k in range(num_first + 1):
            options = [(best[m, k - 1], bands[0], 0)] if k else []
            options += [(best[m - 1, k], bands[1], 1)] if m else []
            if not options:
                continue
            values, sources = zip(
                *(_extended(old, band, behind) for old, band, _ in options), strict=True
            )
            chosen = np.argmin(values, axis=0)[None]
            kinds = np.array([kind for _, _, kind in options])
            best[m, k] = np.take_along_axis(np.array(values), chosen, axis=0)[0]
            came[m, k] = (
                kinds[chosen[0]],
                np.take_along_axis(np.array(sources), chosen, axis=0)[0],
            )
    largest = int(best[num_second, num_first][-1])
    if largest >= limit:
        return None
    return OrderCut(largest, _stages(came, num_first, num_second, size - 1))


def _band(charges: Ints, limit: int) -> Ints:
    """charges[j - d, j] at [d, j], up to the last d with a charge below the limit."""
    size = len(charges)
    below = np.triu(charges < limit)
    farthest = int((np.arange(size) - below.argmax(axis=0))[below.any(axis=0)].max(initial=0))
    band = np.full((farthest + 1, size), TOO_MUCH)
    for distance in range(farthest + 1):
        band[distance, distance:] = np.diagonal(charges, distance)
    band[band >= limit] = TOO_MUCH
    return band


def _extended(best: Ints, band: Ints, behind: Ints) -> tuple[Ints, Ints]:
    """The smallest largest charge for each end j, and the i that gives it."""
    before = behind[: len(band)]
    table = np.maximum(best[before], band)
    distance = table.argmin(axis=0)
    ends = np.arange(len(best))
    return table[distance, ends], ends - distance


def _stages(
    came: dict[tuple[int, int], tuple[Ints, Ints]], k: int, m: int, end: int
) -> tuple[OrderStage, ...]:
    """The stages, read from the end."""
    stages: list[OrderStage] = []
    while end:
        second, first = bool(came[m, k][0][end]), int(came[m, k][1][end])
        if first < end:
            stages.append(OrderStage(second, first, end))
        k, m, end = k - (not second), m - second, first
    return tuple(reversed(stages))
