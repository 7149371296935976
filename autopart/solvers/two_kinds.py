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
solvers/downsets.py finds. Derivation: docs/solvers.md.
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


def cut_order(first: Ints, second: Ints, num_first: int, num_second: int) -> Cut | None:
    """The best cut for loads first[i, j] and second[i, j]; None where every cut is too much."""
    size = len(first)
    backward = np.tri(size, k=-1, dtype=bool)
    loads = [np.where(backward, TOO_MUCH, first), np.where(backward, TOO_MUCH, second)]
    start = np.full(size, TOO_MUCH)
    start[0] = 0
    best: dict[tuple[int, int], Ints] = {(0, 0): start}
    came: dict[tuple[int, int], tuple[Ints, Ints]] = {}
    for m in range(num_second + 1):
        for k in range(num_first + 1):
            options = [(best[m, k - 1], loads[0])] if k else []
            options += [(best[m - 1, k], loads[1])] if m else []
            if not options:
                continue
            reached = [np.maximum(before[:, None], load) for before, load in options]
            values = np.array([table.min(axis=0) for table in reached])
            kind = values.argmin(axis=0)
            source = np.array([table.argmin(axis=0) for table in reached])
            best[m, k] = values.min(axis=0)
            came[m, k] = (kind + (k == 0), np.take_along_axis(source, kind[None], axis=0)[0])
    largest = int(best[num_second, num_first][-1])
    if largest >= TOO_MUCH:
        return None
    return Cut(largest, _pieces(came, num_first, num_second, size - 1))


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
