"""Exact dynamic program over the cuts of one order, for devices of two kinds.

Symbols   n          blocks, in one order
          a[i, j]    load of blocks i … j - 1 on a device of the first kind;  b[i, j]  of the second
          k, m       devices of the first and of the second kind

T(m, k, j) is the smallest possible largest load with which m and k devices hold blocks 0 … j - 1; a
device may be empty, and the kinds may alternate in any way:

    T(m, k, 0) = 0
    T(m, k, j) = min { max( T(m, k-1, i), a[i, j] ),  max( T(m-1, k, i), b[i, j] ) :  i <= j }

It is exact since max is monotone: the best devices before the last one never hurt it. O(n² k m) time.
For one order of a graph this is an upper bound; the best over all orders is the optimum, which
solvers/max_load/downsets.py finds. Derivation: docs/solvers.md.
"""

from typing import NamedTuple

import numpy as np

from autopart.loads.blocks import TOO_MUCH, Ints


class Piece(NamedTuple):
    """Blocks first … last - 1 of the order on a device of the first kind, or of the second."""

    second: bool
    first: int
    last: int


class Cut(NamedTuple):
    """An optimal cut of one order: the largest load, and the devices that hold something."""

    largest: int
    pieces: tuple[Piece, ...]


def cut_order(
    first: Ints, second: Ints, num_first: int, num_second: int, limit: int = TOO_MUCH
) -> Cut | None:
    """The best cut for loads first[i, j] and second[i, j], if its largest load is below `limit`.

    Only pairs i, j with a load below the limit are looked at: those lie in a band along i = j.
    """
    bands = [_band(load, limit) for load in (first, second)]
    width = max(len(band) for band in bands)
    size = len(first)
    behind = np.arange(size)[None, :] - np.arange(width)[:, None]
    start = np.full(size, TOO_MUCH)
    start[0] = 0
    best: dict[tuple[int, int], Ints] = {(0, 0): start}
    came: dict[tuple[int, int], tuple[Ints, Ints]] = {}
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
    return Cut(largest, _pieces(came, num_first, num_second, size - 1))


def _band(loads: Ints, limit: int) -> Ints:
    """loads[j - d, j] at [d, j], up to the last d at which one is below the limit."""
    size = len(loads)
    below = np.triu(loads < limit)
    farthest = int((np.arange(size) - below.argmax(axis=0))[below.any(axis=0)].max(initial=0))
    band = np.full((farthest + 1, size), TOO_MUCH)
    for distance in range(farthest + 1):
        band[distance, distance:] = np.diagonal(loads, distance)
    band[band >= limit] = TOO_MUCH
    return band


def _extended(best: Ints, band: Ints, behind: Ints) -> tuple[Ints, Ints]:
    """The smallest largest load for each end j, and the i with which it is reached."""
    before = behind[: len(band)]
    table = np.maximum(best[before], band)
    distance = table.argmin(axis=0)
    ends = np.arange(len(best))
    return table[distance, ends], ends - distance


def _pieces(
    came: dict[tuple[int, int], tuple[Ints, Ints]], k: int, m: int, end: int
) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    while end:
        second, first = bool(came[m, k][0][end]), int(came[m, k][1][end])
        if first < end:
            pieces.append(Piece(second, first, end))
        k, m, end = k - (not second), m - second, first
    return tuple(reversed(pieces))
