"""Exact dynamic program over the downsets of a partial order, for devices of two kinds.

Symbols   D ⊂ D'     downsets; a stage is the difference D' - D of two
          a(D, D')   load of the stage on a device of the first kind;  b(D, D')  of the second
          K, M       devices of the first and of the second kind
          tau        a threshold; every load must lie below it
          n_m(D)     no fewer devices of the first kind than this can hold what is outside D, with M - m
                     of the second kind and every load below tau: the caller's lower bound

The smallest largest load for K and M devices is found from its dual, the fewest devices for a
threshold. F(m, D) is the fewest devices of the first kind that hold D together with at most m of the
second, every load below tau; of equals, those with the smallest largest load:

    F(m, ∅)  = 0
    F(m, D') = min { F(m, D) + 1  if a(D, D') < tau,   F(m - 1, D)  if b(D, D') < tau :  D ⊊ D' }

A division below tau exists exactly if F(M, V) <= K: each can be built up stage by stage, and replacing
the stages before one by fewer devices never hurts those behind it. The caller lowers tau to the value
that was found until none is; that last, empty search is the proof that no division is better.

What makes it fast: a label with F(m, D) + n_m(D) > K leads nowhere and is dropped, so that of all
pairs D ⊂ D' only those are looked at whose labels can still end within K devices; and rows stand in
the order of a weight that grows with a stage's load, so that the D' of a D are one short range of
rows. O(pairs in range) time, O(M · downsets) memory. Derivation and proof: docs/solvers.md.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from autopart.errors import AutopartError
from autopart.loads.blocks import WORD, Bits, Flags, Ints
from autopart.loads.downset_rows import mask_of
from autopart.loads.downsets import Floats, LoadsFrom

BLOCK = 128
"""Most sources that are extended at a time."""

TILE = 1_024
"""Most targets that they are extended to at a time."""

MANY = 2_000
"""Sources from which on it pays to look for those that others beat."""


class TimeIsUp(AutopartError):
    """The search did not end before its deadline."""


class StageLoads(Protocol):
    """Loads of the stages between rows, on devices of one kind."""

    def towards(self, targets: Ints) -> LoadsFrom:
        """The loads of the stages that end at these rows."""
        ...


class Kind(NamedTuple):
    """Devices of one kind."""

    devices: int
    loads: StageLoads
    reach: int
    """A stage whose weight is above this has a load that is no longer below tau."""
    more: Floats | None = None
    """By row: a stage that ends here could hold one more heavy element for at most this much load, and
    end at another of all downsets that may end a stage; infinite where there is none. Rows that can be
    passed so are not worth a label. None: not known, or some downsets are no rows."""
    excess: Floats | None = None
    """By row: the load of a stage is at most its weight and the excess of both its rows."""


class Rows(NamedTuple):
    """Downsets, those that may end a stage: the first row is empty, the last one full."""

    bits: Bits
    """By word and row."""
    weight: Ints
    """Ascending; a superset stands behind, at a weight no smaller."""
    needs: Ints
    """n_m at [m, row]."""
    before: Sequence[Sequence[int]]
    """The elements that must precede each."""
    heavy: Flags
    """The elements without which a stage never has a larger load, whatever else it holds."""


class Piece(NamedTuple):
    """The stage between two rows, on a device of the first or the second kind."""

    second: bool
    source: int
    target: int


def fewest_devices(
    rows: Rows, first: Kind, second: Kind, tau: int, deadline: float
) -> tuple[Piece, ...] | None:
    """Stages below `tau` on the fewest devices of the first kind; None where there are none.

    `deadline` is a reading of `time.perf_counter()`; TimeIsUp is raised when it has passed.
    """
    search = _Search(rows, first, second, tau, deadline)
    for used in range(first.devices + 1):
        for m in range(second.devices + 1):
            search.extend(m, used)
        if search.done():
            break
    return search.pieces()


def undominated(rows: Rows, sources: Ints, known: Ints) -> Ints:
    """The sources that no known row beats: one with a heavy element more."""
    keys = hashes(rows.bits[:, known])
    order = np.argsort(keys, kind="stable")
    keys, known = keys[order], known[order]
    for element in np.flatnonzero(rows.heavy).tolist():
        smaller = _may_follow(rows, element, sources)
        if not len(smaller):
            continue
        larger = rows.bits[:, smaller]
        larger[element // WORD] |= np.uint64(1 << (element % WORD))
        found = np.minimum(np.searchsorted(keys, hashes(larger)), len(keys) - 1)
        beaten = (rows.bits[:, known[found]] == larger).all(axis=0)
        sources = np.setdiff1d(sources, smaller[beaten], assume_unique=True)
    return sources


def least_more(rows: Rows, elements: Flags, loads: Ints) -> Floats:
    """By row, the least of the loads of those elements that may come next."""
    found = np.full(len(rows.weight), np.inf)
    for element in np.flatnonzero(elements).tolist():
        next_ones = _may_follow(rows, element, np.arange(len(rows.weight)))
        found[next_ones] = np.minimum(found[next_ones], loads[element])
    return found


def _may_follow(rows: Rows, element: int, places: Ints) -> Ints:
    """Those of the places whose downset lacks the element and has all that precede it."""
    may = (rows.bits[element // WORD, places] & np.uint64(1 << (element % WORD))) == 0
    masks = mask_of(rows.before[element], len(rows.bits))
    for word in np.flatnonzero(masks):
        may &= (rows.bits[word, places] & masks[word]) == masks[word]
    return places[may]


def hashes(columns: Bits) -> Bits:
    """A number for each downset; that two have the same is possible, so bits are compared too."""
    found = np.zeros(columns.shape[1], dtype=np.uint64)
    for word in columns:
        found = (found ^ word) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found


class _Search:
    """F(m, D) level by level: when the labels with some m and number of devices of the first kind are
    extended, all that could still improve them have been."""

    def __init__(self, rows: Rows, first: Kind, second: Kind, tau: int, deadline: float) -> None:
        self.rows, self.first, self.second, self.tau = rows, first, second, tau
        self.deadline = deadline
        self.without = ~rows.bits
        shape = (second.devices + 1, len(rows.weight))
        self.used = np.full(shape, first.devices + 1, dtype=np.int32)
        self.worst = np.full(shape, np.inf)
        self.parents = np.zeros(shape, dtype=np.int32)
        self.by_second = np.zeros(shape, dtype=bool)
        self.used[0, 0], self.worst[0, 0] = 0, 0.0

    def extend(self, m: int, used: int) -> None:
        """Lengthen all labels with m devices of the second kind and `used` of the first by a stage."""
        rows, room = self.rows, self.first.devices - used
        alive = (self.used[m] == used) & (rows.needs[m] <= room)
        for fewer in range(m):
            beaten = (self.used[fewer] < used) | (
                (self.used[fewer] == used) & (self.worst[fewer] <= self.worst[m])
            )
            alive &= ~beaten
        sources = np.flatnonzero(alive[:-1])
        if len(sources) > MANY:
            known = np.flatnonzero((self.used[: m + 1] <= used).any(axis=0))
            sources = undominated(rows, sources, known)
        if not len(sources):
            return
        if m < self.second.devices:
            open_rows = (self.used[m + 1] >= used) & (rows.needs[m + 1] <= room)
            self._stages(sources, open_rows, self.second, (m, m + 1, used))
        if room:
            open_rows = (self.used[m] > used) & (rows.needs[m] < room)
            self._stages(sources, open_rows, self.first, (m, m, used + 1))

    def _stages(
        self, sources: Ints, open_rows: Flags, kind: Kind, step: tuple[int, int, int]
    ) -> None:
        """All stages of one kind from the sources to open rows. `step`: m before and after, devices
        of the first kind after."""
        weight = self.rows.weight
        targets = np.flatnonzero(open_rows)
        loads_from = kind.loads.towards(targets)
        without, reached = self.without[:, targets], weight[targets]
        begins = np.searchsorted(targets, sources, side="right")
        ends = np.searchsorted(reached, weight[sources] + kind.reach, side="right")
        more = None if kind.more is None else kind.more[targets]
        least, most = self._worthwhile(sources, targets, kind)
        for at in range(0, len(sources), BLOCK):
            block = sources[at : at + BLOCK]
            last = int(ends[min(at + BLOCK, len(sources)) - 1])
            for begin in range(int(begins[at]), last, TILE):
                if time.perf_counter() > self.deadline:
                    raise TimeIsUp("the search over downsets did not end in time")
                tile = np.arange(begin, min(begin + TILE, last))
                tile = tile[most[tile] >= least[at : at + BLOCK].min()]
                inside = self._includes(block, without[:, tile])
                useful = inside.any(axis=0)
                tile, inside = tile[useful], inside[:, useful]
                if len(tile):
                    loads = loads_from(block, tile)
                    loads[~inside | (targets[tile] == block[:, None])] = np.inf
                    if more is not None:
                        loads[loads + more[tile] < self.tau] = np.inf
                    self._put(block, targets[tile], loads, kind is self.second, step)

    def _worthwhile(self, sources: Ints, targets: Ints, kind: Kind) -> tuple[Floats, Floats]:
        """Two numbers for sources and targets: a target of a smaller one than the source's is always
        passed."""
        if kind.more is None or kind.excess is None:
            return np.zeros(len(sources)), np.zeros(len(targets))
        weight = self.rows.weight.astype(float)
        least = weight[sources] - kind.excess[sources] + self.tau
        return least, weight[targets] + kind.excess[targets] + kind.more[targets]

    def _includes(self, sources: Ints, without: Bits) -> Flags:
        """Whether each target includes each source, at [source, target]."""
        inside = np.ones((len(sources), without.shape[1]), dtype=bool)
        for lacking, bits in zip(without, self.rows.bits[:, sources], strict=True):
            if bits.any() and lacking.any():
                inside &= (lacking & bits[:, None]) == 0
        return inside

    def _put(
        self, sources: Ints, targets: Ints, loads: Floats, second: bool, step: tuple[int, int, int]
    ) -> None:
        before, row, used = step
        loads[loads >= self.tau] = np.inf
        worst = np.maximum(loads, self.worst[before, sources][:, None])
        best = worst.argmin(axis=0)
        values = worst[best, np.arange(len(targets))]
        known, now = self.used[row, targets], self.worst[row, targets]
        better = np.isfinite(values) & ((known > used) | ((known == used) & (values < now)))
        where = targets[better]
        self.used[row, where], self.worst[row, where] = used, values[better]
        self.parents[row, where] = sources[best[better]]
        self.by_second[row, where] = second

    def done(self) -> bool:
        """Whether the full row is reached; labels with more devices cannot beat its label."""
        return bool((self.used[:, -1] <= self.first.devices).any())

    def pieces(self) -> tuple[Piece, ...] | None:
        """The stages of the full row's best label."""
        row, end = int(self.used[:, -1].argmin()), len(self.rows.weight) - 1
        if self.used[row, end] > self.first.devices:
            return None
        found: list[Piece] = []
        while end:
            source, is_second = int(self.parents[row, end]), bool(self.by_second[row, end])
            found.append(Piece(is_second, source, end))
            row, end = row - is_second, source
        return tuple(reversed(found))
