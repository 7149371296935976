"""The smallest bottleneck of a chain cut into k stages, by probing bottlenecks on whole rows of bits.

Symbols   n        layers; a cut c (0 … n) lies before layer c
          [i, j]   a stage: layers i … j - 1
          A[c]     seconds of the layers before cut c;  o  a fixed time of every stage
          g(c)     seconds that a send over cut c takes at both of its ends, by its kind of link;
                   0 at cuts 0 and n
          y_s      microbatches in flight on stage s (from 0), as 1F1B holds k - s
          tau      a bottleneck

    time_s(i, j) = A[j] - A[i] + o + g(i) + g(j)         g of the links before and after stage s
    [i, j] fits on stage s:   y_s stash(i, j) <= capacity - state(i, j)

Stage s is `good` within tau where time_s(i, j) <= tau and it fits. The cuts that can follow s stages:

    R(0) = { 0 },     R(s) = { j :  some i in R(s - 1) has [i, j] good on stage s - 1 }

and tau can be kept exactly if n is in R(k). With the keys S[i] = A[i] - g(i) - o, E[j] = A[j] + g(j) a
stage is in time exactly if E[j] - S[i] <= tau: a threshold on a key of its end. Sends make the keys
jump, so that R(s) need not be an interval and the largest j need not be the best one: all of R(s) is
kept, as the bits of one whole number. The stages of d layers that are good within tau are a row of
bits too, T(d), so that

    R(s) = OR over d of  (R(s - 1) << d) AND T(d) AND fits_s(d)

takes n / 64 words for each length d. Three things keep the lengths few, and none changes R where it
matters. L(k) = n and L(s - 1) = the first start of a good stage that ends at L(s) or behind are cuts
below which R(s) cannot reach the end; they alone refute most values, in O(k). No stage is longer than the layers' own
time, or own bytes, allow. And short lengths are tried first, since finding any way is enough.

A probe is exact for any time and memory, so one may also give state or stash as matrices [i, j]. It
changes its answer only where tau passes a stage's time: bisection over those times ends with the
optimum and, right below it, the last infeasible one, which is the certificate.

O(W n) for the rows of lengths up to W and O(k W n / 64) for R, for each of the O(log (W n)) probes;
k W is about n where layers are much alike. Derivation and proof: docs/solvers.md.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_Kind = tuple[int, int]
"""The kinds of the links before and behind a stage."""

RAISES = (1 + 1e-9, 1.02, 1.1, 1.4, 2.5, 10.0)
"""Bottlenecks to try, as multiples of the lower bound, before any bottleneck is allowed."""

MOST_VALUES = 1 << 17
"""Times that are sorted at once; while more are left, the range of bottlenecks is halved."""

CLOSE = 1e-9
"""Relative distance that is safely more than rounding."""

TINY = 1e-300
"""Seconds that are less than any time."""

EVERY = -1
"""The whole number with all bits."""

SHORT = 4
"""Stages of up to so many times the average number of layers are tried before longer ones."""


class Sizes(NamedTuple):
    """Bytes of every stage [i, j]: layers[j] - layers[i] + received[i] + sent[j]."""

    layers: Array
    """Of the layers before each cut, shape (n + 1,)."""
    received: Array
    """What a stage that begins at the cut holds of what it receives."""
    sent: Array
    """What a stage that ends at the cut holds of what it sends."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Which stages fit; bytes as Sizes, or as a matrix [i, j] of shape (n + 1, n + 1)."""

    capacity: int
    state: Sizes | Array
    """What a stage holds whatever is in flight."""
    stash: Sizes | Array
    """What it holds for each microbatch in flight."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What is known of a chain of n layers, before stages have places."""

    work: Floats
    """Seconds of the layers before each cut, shape (n + 1,), from 0 and never falling: `prefix`."""
    sends: tuple[Floats, ...]
    """For each kind of link, seconds that a send over each cut takes at each of its ends, shape
    (n + 1,), 0 at cuts 0 and n."""
    overhead: float = 0.0
    """Seconds that every stage takes besides."""
    memory: Memory | None = None


class ChainCut(NamedTuple):
    """A cut with the smallest bottleneck."""

    bottleneck: float
    cuts: tuple[int, ...]
    """0, the k - 1 cuts between the stages, and n."""
    infeasible: float | None
    """The largest time of a stage below `bottleneck`, with which there is no cut; None where every
    stage takes at least `bottleneck`."""


def prefix(values: Sequence[float] | Array) -> Array:
    """Sums of the first 0, 1, … n values: whole numbers exactly, times with the error of one
    rounding each, however many there are."""
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return np.concatenate(([0], np.cumsum(array)))
    sums = np.cumsum(array.astype(np.longdouble)).astype(np.float64)
    return np.concatenate(([0.0], np.maximum.accumulate(sums)))


def solve(chain: Chain, links: Sequence[int], in_flight: Sequence[int]) -> ChainCut | None:
    """Cut `chain` into len(in_flight) stages so that the longest stage is shortest; None where
    nothing fits.

    `links` names the kind of link of the cut behind each stage but the last, `in_flight` the
    microbatches in flight of each stage.
    """
    stages = len(in_flight)
    if stages > len(chain.work) - 1:
        return None
    search = _Search(chain, links, in_flight)
    bound = _lower_bound(chain, stages)
    failed = min(bound * (1 - CLOSE), -TINY)
    longest = float(chain.work[-1]) + chain.overhead + 2 * float(np.max(chain.sends))
    for limit in (*(bound * factor for factor in RAISES), longest):
        if search.reach(limit) is not None:
            return search.best(failed, limit)
        failed = max(failed, limit)
    return None


def _lower_bound(chain: Chain, stages: int) -> float:
    """The layers' time shared evenly, with the cheapest sends, and the longest layer alone."""
    inner = np.min(chain.sends, axis=0)[1:-1]
    sends = 2 * float(np.partition(inner, stages - 2)[: stages - 1].sum()) if stages > 1 else 0.0
    even = (float(chain.work[-1]) + sends) / stages
    return max(even, float(np.diff(chain.work).max())) + chain.overhead


class _Times:
    """The times of all stages between two kinds of links, as differences of keys."""

    def __init__(self, chain: Chain, before: int, after: int) -> None:
        self.start = chain.work - (chain.sends[before] + chain.overhead)
        self.end = chain.work + chain.sends[after]
        self.highest = np.maximum.accumulate(self.start)
        order = np.argsort(self.start, kind="stable")
        self.sorted, self.places = self.start[order], order
        self.slack = 4 * float(np.spacing(max(np.abs(self.start).max(), np.abs(self.end).max())))

    def first_starts(self, time: float) -> tuple[list[int], int]:
        """For each cut, a start before which no stage within `time` begins that ends there or
        behind, past the last cut where there is no such stage; and a length that none exceeds."""
        cuts = np.arange(len(self.end))
        start = np.searchsorted(self.highest, self.end - time - self.slack)
        start[start >= cuts] = len(cuts)
        longest = int((cuts - start).max())
        return np.minimum.accumulate(start[::-1])[::-1].tolist(), longest

    def within(self, time: float, layers: int) -> int:
        """The ends of the stages of so many layers within `time`, as bits."""
        return _as_bits(self.end[layers:] - self.start[:-layers] <= time) << layers

    def count(self, low: float, high: float) -> int:
        """At least as many stages as take more than `low` and at most `high`."""
        first, last = self._range(low, high)
        return int((last - first).sum())

    def values(self, low: float, high: float) -> Floats:
        """The times above `low`, up to `high`."""
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


class _Room:
    """Which stages fit, by how many microbatches they have in flight."""

    def __init__(self, memory: Memory, size: int, in_flight: Sequence[int]) -> None:
        self.memory, self.size = memory, size
        self.lengths: dict[int, tuple[Array, Array, float]] = {}
        self.inner: tuple[list[int], list[int]] | None = None
        self.longest = dict.fromkeys(in_flight, size - 1)
        """The most layers that could fit, by how many microbatches are in flight."""
        if isinstance(memory.state, Sizes) and isinstance(memory.stash, Sizes):
            self.inner = memory.state.layers.tolist(), memory.stash.layers.tolist()
            self.longest = _longest(
                memory.state.layers, memory.stash.layers, memory.capacity, in_flight
            )

    def within(self, in_flight: int, layers: int) -> int:
        """The ends of the stages of so many layers that fit, as bits; all bits where all do."""
        room, stash, always = self._sizes(layers)
        if in_flight <= always:
            return EVERY
        return _as_bits(stash * in_flight <= room) << layers

    def first_start(self, in_flight: int, end: int) -> int:
        """A start before which no stage that ends at `end` or behind fits."""
        if self.inner is None:
            return 0
        state, stash = self.inner
        wanted = state[end] + in_flight * stash[end] - self.memory.capacity
        return bisect.bisect_left(range(end), wanted, key=lambda i: state[i] + in_flight * stash[i])

    def last_end(self, in_flight: int, start: int) -> int:
        """An end behind which no stage that begins at `start` or before fits."""
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

    def _sizes(self, layers: int) -> tuple[Array, Array, float]:
        if layers not in self.lengths:
            room = self.memory.capacity - _of_length(self.memory.state, layers)
            stash = _of_length(self.memory.stash, layers)
            some = stash > 0
            # One less than the quotient, so that its rounding does not matter.
            always = float((room[some] / stash[some]).min(initial=np.inf)) - 1
            self.lengths[layers] = room, stash, always if (room >= 0).all() else -np.inf
        return self.lengths[layers]


class _Search:
    """Probes of one chain, with what they share."""

    def __init__(self, chain: Chain, links: Sequence[int], in_flight: Sequence[int]) -> None:
        self.last = len(chain.work) - 1
        before, after = [*links[:1], *links], [*links, *links[-1:]]
        kinds = list(zip(before, after, strict=True)) if links else [(0, 0)]
        self.times = {kind: _Times(chain, *kind) for kind in set(kinds)}
        self.stages = list(zip(kinds, in_flight, strict=True))
        self.room = _Room(chain.memory, len(chain.work), in_flight) if chain.memory else None
        self.fits: dict[int, dict[int, int] | None] = {
            y: {} if self.room else None for y in in_flight
        }

    def best(self, failed: float, limit: float) -> ChainCut:
        """The smallest bottleneck above `failed`, which has no cut, up to `limit`, which has one."""
        values = self._values(failed, limit)
        low, high = -1, len(values) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.reach(values[middle]) is None:
                low = middle
            else:
                high = middle
        bottleneck = float(values[high])
        below = float(values[high - 1]) if high else self._next_below(bottleneck)
        return ChainCut(bottleneck, self._cuts(bottleneck), below)

    def reach(self, time: float) -> list[int] | None:
        """R(0) … R(k) within `time`, without what cannot reach the end; None where R(k) lacks n."""
        first = {kind: times.first_starts(time) for kind, times in self.times.items()}
        lowest = [self.last]
        for kind, in_flight in reversed(self.stages):
            end = lowest[-1]
            start = max(
                first[kind][0][end], self.room.first_start(in_flight, end) if self.room else 0
            )
            if start > self.last:
                return None
            lowest.append(start)
        lowest.reverse()
        if lowest[0] > 0:
            return None
        good: dict[_Kind, dict[int, int]] = {kind: {} for kind in self.times}
        short = SHORT * -(-self.last // len(self.stages))
        reached, cut_short = self._sweep(time, good, first, lowest, short)
        if not reached[-1] and cut_short:
            reached, _ = self._sweep(time, good, first, lowest, self.last)
        return reached if reached[-1] else None

    def _sweep(
        self,
        time: float,
        good: dict[_Kind, dict[int, int]],
        first: dict[_Kind, tuple[list[int], int]],
        lowest: list[int],
        longest: int,
    ) -> tuple[list[int], bool]:
        """R(0), R(1), … up to R(k) or the first that is empty, with stages of at most `longest`
        layers; and whether longer ones were left out."""
        now, reached, cut_short = 1, [1], False
        for (kind, in_flight), low in zip(self.stages, lowest[1:], strict=True):
            bottom, top = (now & -now).bit_length() - 1, now.bit_length() - 1
            starts, most = first[kind]
            furthest = bisect.bisect_right(starts, top) - 1
            if self.room:
                furthest = min(furthest, self.room.last_end(in_flight, top))
                most = min(most, self.room.longest[in_flight])
            most = min(most, furthest - bottom)
            cut_short |= most > longest
            lengths = range(max(1, low - top), min(longest, most) + 1)
            then = self._step(now, lengths, time, self.times[kind], good[kind], in_flight)
            now = then >> low << low
            reached.append(now)
            if not now:
                break
        return reached, cut_short

    def _step(
        self,
        now: int,
        lengths: range,
        time: float,
        times: "_Times",
        rows: dict[int, int],
        in_flight: int,
    ) -> int:
        """The ends of the good stages of such lengths that start in `now`."""
        fits = self.fits[in_flight]
        then = 0
        for layers in lengths:
            row = rows.get(layers)
            if row is None:
                row = rows[layers] = times.within(time, layers)
            ends = now << layers & row
            if ends and fits is not None:
                fit = fits.get(layers)
                if fit is None:
                    assert self.room is not None
                    fit = fits[layers] = self.room.within(in_flight, layers)
                ends &= fit
            then |= ends
        return then

    def _cuts(self, time: float) -> tuple[int, ...]:
        """The cuts of a way within `time`, which has one."""
        reached = self.reach(time)
        assert reached is not None, "a bottleneck that was found can be kept"
        cuts = [self.last]
        for (kind, in_flight), starts in zip(reversed(self.stages), reached[-2::-1], strict=True):
            end, times = cuts[-1], self.times[kind]
            in_time = np.flatnonzero(times.end[end] - times.start[:end] <= time)
            cuts.append(
                next(
                    start
                    for start in reversed(in_time.tolist())
                    if starts >> start & 1
                    and (not self.room or self.room.within(in_flight, end - start) >> end & 1)
                )
            )
        return tuple(reversed(cuts))

    def _values(self, failed: float, limit: float) -> Floats:
        """The times of stages above `failed` and up to `limit`, after both have been brought so
        close together that they are few."""
        while sum(times.count(failed, limit) for times in self.times.values()) > MOST_VALUES:
            middle = failed + (limit - failed) / 2
            if not failed < middle < limit:
                return np.array([limit])
            if self.reach(middle) is None:
                failed = middle
            else:
                limit = middle
        return np.unique(np.concatenate([t.values(failed, limit) for t in self.times.values()]))

    def _next_below(self, time: float) -> float | None:
        """The largest time of a stage below `time`."""
        step = CLOSE * time
        while 0 < step < 2 * time:
            near = [t.values(time - step, time) for t in self.times.values()]
            below = np.concatenate(near)
            below = below[below < time]
            if len(below):
                return float(below.max())
            step *= 4
        return None


def _longest(state: Array, stash: Array, capacity: int, in_flight: Sequence[int]) -> dict[int, int]:
    """For each number in flight, the most layers, at least 1, whose own bytes some stage can hold."""
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
    """The sizes of all stages of so many layers, by their ends."""
    if not isinstance(sizes, tuple):
        return np.diagonal(sizes, layers)
    inner = sizes.layers[layers:] - sizes.layers[:-layers]
    return inner + sizes.received[:-layers] + sizes.sent[layers:]


def _as_bits(flags: Array) -> int:
    """Entry j as bit j of one whole number."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
