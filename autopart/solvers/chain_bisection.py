"""The smallest bottleneck of a chain in k stages, by bisection over bottlenecks on rows of bits.

Symbols   n        layers; cut c (0 … n) lies before layer c
          [i, j]   a stage: layers i … j - 1
          A[c]     seconds of the layers before cut c;  o  fixed seconds per stage
          g(c)     seconds that a send over cut c takes at each of its ends, per kind of link;
                   0 at cuts 0 and n
          y_s      microbatches in flight on stage s (from 0): k - s under 1F1B
          tau      a bottleneck, in seconds

    time_s(i, j) = A[j] - A[i] + o + g(i) + g(j)         g of the links before and after stage s
    [i, j] fits on stage s:   y_s stash(i, j) <= capacity - state(i, j)

Stage s is `good` within tau if time_s(i, j) <= tau and it fits. The cuts that can follow s stages:

    R(0) = { 0 },     R(s) = { j :  some i in R(s - 1) has [i, j] good on stage s - 1 }

tau is feasible exactly if n is in R(k). Take the keys S[i] = A[i] - g(i) - o and E[j] = A[j] + g(j). A stage is
within tau exactly if E[j] - S[i] <= tau: a threshold on a key of its end. Sends make the keys jump, so R(s) need not
be an interval, and the largest j need not be the best. All of R(s) is kept, as the bits of one whole number. The good
stages of d layers are a row of bits T(d), so that

    R(s) = OR over d of  (R(s - 1) << d) AND T(d) AND fits_s(d)

takes n / 64 words per length d. Three rules keep the lengths few and keep R exact:

(1) L(k) = n, and L(s - 1) is the first start of a good stage that ends at L(s) or later. Below L(s) no cut of R(s) can
    reach the end. L alone refutes most values, in O(k).
(2) A stage is no longer than the seconds, or the bytes, of its layers alone allow.
(3) Short lengths are tried first, because one path is enough.

The test of one tau is exact for any seconds and bytes, so state and stash may be matrices [i, j]. Its answer changes
only where tau passes the seconds of a stage. So bisection over these seconds ends with the optimum. The value right
below it is infeasible, which is the certificate.

O(W n) for the rows up to length W. O(k W n / 64) for R, for each of O(log (W n)) values of tau. k W is about n where
layers are similar. Derivation and proof: docs/solvers.md.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from autopart.solvers.chain import Chain, ChainCut, Floats
from autopart.solvers.chain_rows import FittingRows, TimedRows
from autopart.stopping.time_limit import check_time

_Kind = tuple[int, int]
"""Link kinds before and after a stage."""

RAISES = (1 + 1e-9, 1.02, 1.1, 1.4, 2.5, 10.0)
"""Bottlenecks to try first, as multiples of the lower bound."""

MOST_VALUES = 1 << 17
"""The most seconds to sort at once. Above it, the bottleneck range is halved first."""

CLOSE = 1e-9
"""A relative difference that is larger than any rounding error."""

TINY = 1e-300
"""Seconds below any stage's."""

SHORT = 4
"""Stages up to this multiple of the mean length are tried before longer ones."""


def solve(chain: Chain, links: Sequence[int], in_flight: Sequence[int]) -> ChainCut | None:
    """Cut `chain` into len(in_flight) stages with the smallest bottleneck; None where nothing fits.

    `links` names the link kind after each stage except the last. `in_flight` has each stage's
    microbatches in flight.
    """
    stages = len(in_flight)
    if stages > len(chain.work) - 1:
        return None
    search = _Bisection(chain, links, in_flight)
    # Step 1: raise the bottleneck from the lower bound until it is feasible. Step 2: bisect below it.
    bound = _lower_bound(chain, stages)
    failed = min(bound * (1 - CLOSE), -TINY)
    longest = float(chain.work[-1]) + chain.overhead + 2 * float(np.max(chain.sends))
    for limit in (*(bound * factor for factor in RAISES), longest):
        if search.reach(limit) is not None:
            return search.best(failed, limit)
        failed = max(failed, limit)
    return None


def _lower_bound(chain: Chain, stages: int) -> float:
    """The larger bound: an even share with the cheapest sends, or the longest layer alone."""
    inner = np.min(chain.sends, axis=0)[1:-1]
    sends = 2 * float(np.partition(inner, stages - 2)[: stages - 1].sum()) if stages > 1 else 0.0
    even = (float(chain.work[-1]) + sends) / stages
    return max(even, float(np.diff(chain.work).max())) + chain.overhead


class _Bisection:
    """Bottleneck tests on one chain, and their shared rows."""

    def __init__(self, chain: Chain, links: Sequence[int], in_flight: Sequence[int]) -> None:
        self.last = len(chain.work) - 1
        before, after = [*links[:1], *links], [*links, *links[-1:]]
        kinds = list(zip(before, after, strict=True)) if links else [(0, 0)]
        self.times = {kind: TimedRows(chain, *kind) for kind in set(kinds)}
        self.stages = list(zip(kinds, in_flight, strict=True))
        self.room = FittingRows(chain.memory, len(chain.work), in_flight) if chain.memory else None
        self.fits: dict[int, dict[int, int] | None] = {
            y: {} if self.room else None for y in in_flight
        }

    def best(self, failed: float, limit: float) -> ChainCut:
        """The smallest bottleneck above `failed`, which is infeasible, up to `limit`, which is feasible."""
        values = self._values(failed, limit)
        # Invariant: values[high] is feasible, values[low] is not.
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
        """R(0) … R(k) within `time`, without cuts that cannot reach the end; None where n is not in R(k)."""
        # Step 1, rule (1): L(k), …, L(0) from the last stage to the first.
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
        # Step 2, rule (3): sweep with short stages, then with all of them.
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
        """R(0), R(1), … up to R(k) or the first empty one, with at most `longest` layers per stage.

        The second value says whether longer stages were left out.
        """
        now, reached, cut_short = 1, [1], False
        for (kind, in_flight), low in zip(self.stages, lowest[1:], strict=True):
            check_time()
            # The lowest and the highest cut of R(s), then the lengths of rule (2), then R(s + 1).
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
        times: TimedRows,
        rows: dict[int, int],
        in_flight: int,
    ) -> int:
        """Ends for the good stages with these lengths that start in `now`, as bits."""
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
        """The cuts on one path within `time`, which must be feasible."""
        reached = self.reach(time)
        assert reached is not None, "a bottleneck that was found can be kept"
        # Backwards: take the latest start in R(s) of a good stage that ends at the cut behind it.
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
        """Stage seconds between `failed` and `limit`, after bisection has made them few."""
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
        """The largest stage seconds below `time`; None where there is none."""
        # Look a little below `time`, then four times as far, until a stage is found.
        step = CLOSE * time
        while 0 < step < 2 * time:
            near = [t.values(time - step, time) for t in self.times.values()]
            below = np.concatenate(near)
            below = below[below < time]
            if len(below):
                return float(below.max())
            step *= 4
        return None
