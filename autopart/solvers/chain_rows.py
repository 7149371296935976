"""Stages with one length on a chain, as rows of bits: those within some seconds, and those that
fit.

The symbols are the ones in chain_bisection.py.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from autopart.solvers.chain import Array, Chain, Floats, MemoryLimit, Sizes

EVERY = -1
"""The whole number with all bits set."""


class TimedRows:
    """All stage seconds between two link kinds, as key differences E[j] - S[i]."""

    def __init__(self, chain: Chain, before: int, after: int) -> None:
        self.start = chain.work - (chain.sends[before] + chain.overhead)
        self.end = chain.work + chain.sends[after]
        self.highest = np.maximum.accumulate(self.start)
        order = np.argsort(self.start, kind="stable")
        self.sorted, self.places = self.start[order], order
        self.slack = 4 * float(np.spacing(max(np.abs(self.start).max(), np.abs(self.end).max())))

    def first_starts(self, time: float) -> tuple[list[int], int]:
        """For each cut, the first start for a stage within `time` that ends there or later; and the
        longest length.

        The start lies past the last cut where no stage qualifies.
        """
        cuts = np.arange(len(self.end))
        start = np.searchsorted(self.highest, self.end - time - self.slack)
        start[start >= cuts] = len(cuts)
        longest = int((cuts - start).max())
        return np.minimum.accumulate(start[::-1])[::-1].tolist(), longest

    def within(self, time: float, layers: int) -> int:
        """T(d): ends for the stages with `layers` layers within `time`, as bits."""
        return _as_bits(self.end[layers:] - self.start[:-layers] <= time) << layers

    def count(self, low: float, high: float) -> int:
        """An upper bound on how many stages take more than `low` and at most `high` seconds."""
        first, last = self._range(low, high)
        return int((last - first).sum())

    def values(self, low: float, high: float) -> Floats:
        """Stage seconds above `low`, up to `high`."""
        first, last = self._range(low, high)
        count = last - first
        ends = np.repeat(np.arange(len(count)), count)
        rank = np.arange(len(ends)) - np.repeat(count.cumsum() - count - first, count)
        starts = self.places[rank]
        times = (self.end[ends] - self.start[starts])[starts < ends]
        return times[(times > low) & (times <= high)]

    def _range(self, low: float, high: float) -> tuple[Array, Array]:
        first = np.searchsorted(self.sorted, self.end - high - self.slack)
        last = np.searchsorted(self.sorted, self.end - low + self.slack, side="right")
        return first, last


class FittingRows:
    """The stages that fit, for each in-flight count."""

    def __init__(self, memory: MemoryLimit, size: int, in_flight: Sequence[int]) -> None:
        self.memory, self.size = memory, size
        self.lengths: dict[tuple[int, int], tuple[Array, Array, float]] = {}
        self.inner: tuple[list[int], list[int]] | None = None
        self.longest = dict.fromkeys(in_flight, size - 1)
        """The most layers that can fit, for each in-flight count."""
        if isinstance(memory.state, Sizes) and isinstance(memory.stash, Sizes):
            self.inner = memory.state.layers.tolist(), memory.stash.layers.tolist()
            self.longest = _longest(
                memory.state.layers, memory.stash.layers, memory.capacity, in_flight
            )

    def within(self, in_flight: int, layers: int) -> int:
        """Ends for the stages with `layers` layers that fit, as bits; all bits where all fit."""
        room, stash, always = self._sizes(layers, self.memory.number_of(in_flight))
        if in_flight <= always:
            return EVERY
        return _as_bits(stash * in_flight <= room) << layers

    def first_start(self, in_flight: int, end: int) -> int:
        """The first start for a stage that may fit and ends at `end` or later."""
        if self.inner is None:
            return 0
        state, stash = self.inner
        wanted = state[end] + in_flight * stash[end] - self.memory.capacity
        return bisect.bisect_left(range(end), wanted, key=lambda i: state[i] + in_flight * stash[i])

    def last_end(self, in_flight: int, start: int) -> int:
        """The last end for a stage that may fit and begins at `start` or earlier."""
        if self.inner is None:
            return self.size - 1
        state, stash = self.inner
        most = state[start] + in_flight * stash[start] + self.memory.capacity
        return (
            bisect.bisect_right(
                range(self.size), most, key=lambda j: state[j] + in_flight * stash[j]
            )
            - 1
        )

    def _sizes(self, layers: int, number: int) -> tuple[Array, Array, float]:
        """The room beside the state and the bytes number `number`, and the stash, by the stages' ends."""
        if (layers, number) not in self.lengths:
            room = self.memory.capacity - _of_length(self.memory.state, layers)
            beside = self.memory.beside_in_flight(number)
            if beside is not None:
                room = room - _of_length(beside, layers)
            stash = _of_length(self.memory.stash, layers)
            some = stash > 0
            # One less than the quotient, because the quotient is rounded.
            always = float((room[some] / stash[some]).min(initial=np.inf)) - 1
            fits = always if (room >= 0).all() else -np.inf
            self.lengths[layers, number] = room, stash, fits
        return self.lengths[layers, number]


def _longest(state: Array, stash: Array, capacity: int, in_flight: Sequence[int]) -> dict[int, int]:
    """For each number in flight, the most layers (at least 1) whose own bytes fit in some stage."""
    # More in flight never allows more layers, so the count only falls.
    found: dict[int, int] = {}
    layers: int | None = None
    for y in sorted(set(in_flight)):
        inner = state + y * stash
        if layers is None:
            beyond = np.searchsorted(inner, inner + capacity, side="right") - 1
            layers = max(1, int((beyond - np.arange(len(inner))).max()))
        while layers > 1 and (inner[layers:] - inner[:-layers]).min() > capacity:
            layers -= 1
        found[y] = layers
    return found


def _of_length(sizes: Sizes | Array, layers: int) -> Array:
    """The bytes for all stages with `layers` layers, by their ends."""
    if not isinstance(sizes, tuple):
        return np.diagonal(sizes, layers)
    inner = sizes.layers[layers:] - sizes.layers[:-layers]
    return inner + sizes.received[:-layers] + sizes.sent[layers:]


def _as_bits(flags: Array) -> int:
    """Entry j as bit j in one whole number."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
