"""A layer graph's downsets as bit masks, with their covers and levels, and the inclusion between
them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autopart.downsets import bits, downset_lattice, unpack
from autopart.solvers.fewest_ranks import Flags, Ints

MOST_DOWNSETS = 300_000
"""Number of downsets up to which all are looked at."""

MOST_SPANNING_LAYERS = 1500
"""Number of layers up to which the irreducible downsets are looked at, two per layer."""

MOST_PAIRED_DOWNSETS = 1500
"""Number of downsets up to which all pairs are looked at."""


class Downsets(NamedTuple):
    """Downsets, each behind those inside it: the empty one first, all layers last."""

    masks: Sequence[int]
    """Bit masks: the layers in each downset."""
    tops: Sequence[int]
    """Bit masks: for each downset its layers that no other layer in it reads."""
    grown: Sequence[tuple[int, int]] | None
    """For each downset except the first an earlier downset, and the layer or piece added to it.
    None where the list is any selection."""
    covers: tuple[Ints, Ints] | None
    """Pairs of downsets that differ by one layer or piece: the smaller ones, ascending, and the
    larger ones. None where some downsets are missing."""


def list_downsets(before: Sequence[int], after: Sequence[int], most: int) -> Downsets | None:
    """All downsets in a graph, or None where there are more than `most`.

    `before` and `after` are bit masks: for each layer the layers that it reads, and its readers.
    Covers follow inclusion. O(covers · width) time.
    """
    lattice = downset_lattice(before, after, most)
    if lattice is None:
        return None
    tops = [0]
    for parent, layer in lattice.grown:
        tops.append(tops[parent] & ~before[layer] | 1 << layer)
    return Downsets(lattice.masks, tops, lattice.grown, lattice.covers)


def prefixes(before: Sequence[int], order: Sequence[int]) -> Downsets:
    """The downsets along one order of the layers."""
    masks, tops = [0], [0]
    for v in order:
        masks.append(masks[-1] | 1 << v)
        tops.append(tops[-1] & ~before[v] | 1 << v)
    return Downsets(masks, tops, list(enumerate(order)), None)


def with_ahead(before: Sequence[int]) -> list[int]:
    """For each layer a bit mask: the layer and everything ahead of it."""
    found: list[int] = []
    for v, sources in enumerate(before):
        mask = 1 << v
        for u in bits(sources):
            mask |= found[u]
        found.append(mask)
    return found


def irreducibles(
    before: Sequence[int], after: Sequence[int], others: Sequence[int] = ()
) -> Downsets:
    """The irreducible downsets, and others.

    For each layer there are two: the layer with everything ahead of it, and all layers except it
    and everything behind it. The first has a single top. The second lacks a single ready layer.
    Cuts with little to send are often among them.
    """
    everything = (1 << len(before)) - 1
    behind = [0] * len(before)
    for v in reversed(range(len(before))):
        behind[v] = 1 << v
        for w in bits(after[v]):
            behind[v] |= behind[w]
    found = {0, everything, *others, *with_ahead(before)}
    found.update(everything & ~mask for mask in behind)
    masks = sorted(found, key=lambda mask: (mask.bit_count(), mask))
    tops = [sum(1 << v for v in bits(mask) if not after[v] & mask) for mask in masks]
    return Downsets(masks, tops, None, None)


def nesting(downsets: Downsets) -> Flags:
    """Flags [j, k]: downset k lies inside downset j, and is not equal to it."""
    size = len(downsets.masks)
    if downsets.covers is not None:
        above = [0] * size
        # All covers are known. From the largest downset down: everything above a child is above its
        # parent.
        for parent, child in zip(*(side[::-1].tolist() for side in downsets.covers), strict=True):
            above[parent] |= above[child] | 1 << child
        return np.ascontiguousarray(unpack(above, size).T)
    width = downsets.masks[-1].bit_length()
    holders = np.ascontiguousarray(unpack(downsets.masks, width).T)
    inside = np.ones((size, size), dtype=bool)
    # Otherwise: downset `at` lies inside each downset that holds all its tops.
    for at, top in enumerate(downsets.tops):
        inside[at] = holders[list(bits(top))].all(axis=0)
    np.fill_diagonal(inside, False)
    return np.ascontiguousarray(inside.T)


def downsets_between(nested: Flags, start: int, end: int) -> list[int]:
    """Places: downset `start`, all downsets between it and `end`, and `end`."""
    between = np.flatnonzero(nested[:, start] & nested[end])
    return [start, *between.tolist(), end]


@dataclass(frozen=True, slots=True)
class Level:
    """Downsets with the same number of layers, and their covers."""

    begin: int
    """Place of the level's first downset."""
    end: int
    """Place after the level's last downset."""
    children: Ints
    """For each cover out of this level its larger downset, as a place relative to the next level.
    """
    firsts: Ints
    """Position of each downset's first entry in `children`."""


def levels(downsets: Downsets) -> list[Level]:
    """The downsets level by level, the empty one first; all their covers must be there."""
    assert downsets.covers is not None and downsets.grown is not None
    parents, children = downsets.covers
    depths = [0]
    for parent, _ in downsets.grown:
        depths.append(depths[parent] + 1)
    sizes = np.array(depths)
    begins = np.append(np.flatnonzero(np.diff(sizes, prepend=-1)), len(sizes))
    found: list[Level] = []
    for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        low, high = np.searchsorted(parents, [begin, end]).tolist()
        firsts = np.searchsorted(parents[low:high], np.arange(begin, end))
        found.append(Level(begin, end, children[low:high] - end, firsts))
    return found
