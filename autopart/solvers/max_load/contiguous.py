"""The smallest largest load of blocks on accelerators and CPUs, contiguous, with its proof.

Symbols   tau   a threshold, in quanta;  UB, LB   the best division's largest load, and a lower bound

 1. Blocks that take no time leave the search (solvers/max_load/absorb.py).
 2. UB: a few topological orders are cut exactly (solvers/max_load/two_kinds.py).
 3. LB: the counting bound (solvers/max_load/bounds.py).
 4. While LB < UB: the downsets that may end a stage of a division below tau are enumerated, and the
    fewest devices for tau = UB sought (solvers/max_load/downsets.py). What is found lowers UB; if nothing is,
    LB = UB, and the search itself is the proof.

Where the downsets that may end a stage below UB are too many, or their pairs, tau is taken lower: an
empty search below it still raises LB. At the deadline the best division stands with the LB so far.
Derivation and proof: docs/solvers.md.
"""

import contextlib
import heapq
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autopart.loads.blocks import Bits, BlockLoads, Blocks, Flags, Ints, depth_first_order
from autopart.loads.downset_rows import enumerate_downsets, estimated_downsets
from autopart.loads.downsets import (
    AcceleratorLoads,
    CpuLoads,
    Sums,
    Table,
    chosen,
    counts,
    flags_of,
    split_costs,
    sums,
)
from autopart.solvers.max_load.bounds import counting_bound
from autopart.solvers.max_load.downsets import (
    MANY,
    Kind,
    Piece,
    Rows,
    TimeIsUp,
    fewest_devices,
    least_more,
)
from autopart.solvers.max_load.neighbourhood import downsets_near
from autopart.solvers.max_load.two_kinds import cut_order
from autopart.solvers.max_load.windows import Windows, windows

FLAGS = 1 << 21
"""Blocks times downsets that are looked at at a time while downsets are enumerated."""

TABLE_BYTES = 1 << 27
"""Most memory for the downsets that are kept."""

MOST_CUTS = 1_500
"""Places where an order may be cut."""

FIRST_LIMIT = 2
"""The first order is cut below this multiple of the lower bound, then below larger ones."""

FEW_DOWNSETS = 50_000
"""Where there are more, the upper bound is polished before all are enumerated."""

EASY_PAIRS = 1e8
"""Where fewer pairs of downsets are to be looked at, tau is the upper bound at once."""

FIRST_SHARE = 1 / 8
"""Else tau first lies at this share of the gap; the share doubles with each empty search."""

LEAST_SHARE = 1 / 1_000
"""Steps that are smaller than this share of the gap are not worth their time."""

SLICE = 0.6
"""Of the time that is left, what one search may take; then the share is divided by four."""

NEAR = 500
"""Downsets around each end of a stage that polishing begins with."""

FARTHEST = 8_000
"""Downsets around each end of a stage that it ends with."""

POLISH_SHARE = 0.3
"""Of the time, what polishing may take before the downsets are enumerated."""

SAMPLE = 2_000
"""Downsets from which the number of all is estimated."""

DOWNSETS_PER_SECOND = 1e6
"""How many can be enumerated in a second, about; above that, the time goes into a better division."""

ORDERS = 20
"""Orders near the best division that are cut between two rounds of polishing."""

RANK_SPREAD = 0.3
"""How far such an order moves blocks, in stages, as a standard deviation."""


class Stage(NamedTuple):
    """Blocks on one device."""

    on_cpu: bool
    blocks: tuple[int, ...]


class Division(NamedTuple):
    """All blocks on devices, in pipeline order, and the largest load in quanta."""

    largest: int
    stages: tuple[Stage, ...]


class Outcome(NamedTuple):
    """What a search came to."""

    best: Division | None
    """The best division; None where none was found better than a start without stages."""
    lower: int
    """No division's largest load is smaller, in quanta."""
    closed: bool
    """Whether it is proven that no division is better than `best`, or than the start."""
    downsets: int
    """How many downsets were enumerated, 0 where no search was needed."""
    searched: bool
    """Whether `lower` comes from an empty search."""


def minimise(
    loads: BlockLoads,
    num_accelerators: int,
    num_cpus: int,
    start: Division,
    deadline: float,
    enough: int = 0,
) -> Outcome:
    """The best division; only what is better than `start` is looked for, which may have no stages.

    A largest load of at most `enough` need not be bettered. `deadline` is a reading of
    `time.perf_counter()`.
    """
    minimiser = _Minimiser(loads, num_accelerators, num_cpus, start, deadline)
    minimiser.lower = max(minimiser.lower, enough)
    return minimiser.run()


class _Minimiser:
    def __init__(
        self,
        loads: BlockLoads,
        num_accelerators: int,
        num_cpus: int,
        start: Division,
        deadline: float,
    ) -> None:
        self.loads, self.blocks = loads, loads.blocks
        size = len(self.blocks.work)
        self.num_accelerators = min(num_accelerators, size)
        self.num_cpus = min(num_cpus, size)
        self.deadline = deadline
        self.best = start if start.stages else None
        self.upper = start.largest
        self.lower = counting_bound(loads, self.num_accelerators, self.num_cpus)
        self.enumerated, self.searched = 0, False

    def run(self) -> Outcome:
        for order in _orders(self.blocks):
            self._cut(order)
            if self.lower >= self.upper or time.perf_counter() > self.deadline:
                break
        with contextlib.suppress(TimeIsUp):
            self._close()
        closed = self.lower >= self.upper
        return Outcome(
            self.best, min(self.lower, self.upper), closed, self.enumerated, self.searched
        )

    def _cut(self, order: Sequence[int]) -> None:
        """Lower the upper bound to the best cut of one order."""
        cuts = self._cuts(order)
        loads = self.loads.intervals(order, cuts)
        counts = self.num_accelerators, self.num_cpus
        limit, cut = min(self.upper, FIRST_LIMIT * self.lower + 1), None
        while cut is None and limit < self.upper:
            cut = cut_order(*loads, *counts, limit)
            limit *= 4
        if cut is None:
            cut = cut_order(*loads, *counts, self.upper)
        if cut is not None:
            self.upper = cut.largest
            ends = cuts.tolist()
            self.best = Division(
                cut.largest,
                tuple(
                    Stage(p.second, tuple(order[ends[p.first] : ends[p.last]])) for p in cut.pieces
                ),
            )

    def _cuts(self, order: Sequence[int]) -> Ints:
        """The places where an order may be cut: all, or those that part the work most evenly."""
        size = len(order)
        if size <= MOST_CUTS:
            return np.arange(size + 1)
        work = np.cumsum(self.loads.work[np.array(order)] + 1)
        even = np.searchsorted(work, np.linspace(0, work[-1], MOST_CUTS))
        return np.unique(np.concatenate([[0, size], even]))

    def _close(self) -> None:
        """Bring the bounds together."""
        if self.lower >= self.upper:
            return
        limit, table = self._downsets(self.upper, FEW_DOWNSETS)
        if limit < self.upper or self._pairs(table) > EASY_PAIRS:
            self._polish(FARTHEST, POLISH_SHARE)
            number = estimated_downsets(self.blocks.before, SAMPLE)
            if number > DOWNSETS_PER_SECOND * (self.deadline - time.perf_counter()):
                self._wander()
                raise TimeIsUp("there are too many downsets to enumerate in time")
            limit, table = self._downsets(self.upper, None)
        while self.lower < self.upper:
            self._climb(limit, table)
            if limit < self.upper:
                limit, table = self._downsets(self.upper, None)

    def _climb(self, limit: int, table: Table) -> None:
        """Search below one threshold after the other, until the bounds meet or one is the limit."""
        share = 1.0 if self._pairs(table) < EASY_PAIRS else FIRST_SHARE
        most = 1.0
        while self.lower < min(limit, self.upper):
            gap = min(limit, self.upper) - self.lower
            tau = self.lower + max(1, math.ceil(gap * share))
            now = time.perf_counter()
            try:
                found = self._search(table, tau, now + (self.deadline - now) * SLICE)
            except TimeIsUp:
                most, share = share / 2, share / 4
                if share < LEAST_SHARE or time.perf_counter() > self.deadline:
                    raise
                continue
            if found is None:
                self.lower, self.searched = tau, True
                share = max(share, min(2 * share, most))
            else:
                self._improve(found)

    def _improve(self, found: Division) -> None:
        self.upper, self.best = found.largest, found
        self._cut([block for stage in found.stages for block in stage.blocks])

    def _wander(self) -> None:
        """Lower the upper bound until the time is over: orders that are near the best division, and
        searches farther and farther around the ends of its stages."""
        rng, farthest = np.random.default_rng(0), FARTHEST
        while self.lower < self.upper and time.perf_counter() < self.deadline:
            if self.best is not None:
                for _ in range(ORDERS):
                    self._cut(_order_near(self.blocks, self.best, rng))
            else:
                self._cut(_order_near(self.blocks, Division(0, ()), rng))
            self._polish(farthest, 0.5)
            farthest = min(2 * farthest, 4 * FARTHEST)

    def _polish(self, farthest: int, share: float) -> None:
        """Lower the upper bound by searches among the downsets around the ends of the stages, up to
        `farthest` for each, in a share of the time that is left."""
        count, began = NEAR, time.perf_counter()
        until = began + share * (self.deadline - began)
        while self.best is not None and self.lower < self.upper and count <= farthest:
            rows = downsets_near(self.blocks.before, self._ends(), count)
            table = _sorted(_inside(self.loads, rows, self._windows(self.upper)))
            try:
                found = self._search(table, self.upper, until, whole=False)
            except TimeIsUp:
                return
            if found is not None:
                self._improve(found)
            else:
                count *= 4

    def _ends(self) -> Flags:
        """The downsets that end the best division's stages, with the empty one, as flags by row."""
        assert self.best is not None
        ends = np.zeros((len(self.best.stages) + 1, len(self.blocks.work)), dtype=bool)
        for index, stage in enumerate(self.best.stages):
            ends[index + 1 :, list(stage.blocks)] = True
        return ends

    def _pairs(self, table: Table) -> float:
        """About how many pairs of downsets a search below the upper bound looks at."""
        weight = table.sums.work
        ends = np.searchsorted(weight, weight + self.upper, side="right")
        return float((ends - np.arange(len(weight))).sum()) * (self.num_cpus + 1)

    def _windows(self, tau: int) -> Windows:
        return windows(self.loads, self.num_accelerators, self.num_cpus, tau)

    def _downsets(self, tau: int, most: int | None) -> tuple[int, Table]:
        """The downsets that may end a stage below a threshold: `tau`, or less where memory is short.

        Where there are more than `most`, none, and the threshold is the lower bound.
        """
        blocks, kept, room = self.blocks, list[Table](), TABLE_BYTES
        bounds = self._windows(tau)
        self.enumerated = 0
        for rows in enumerate_downsets(blocks.before, max(1, FLAGS // len(blocks.work))):
            if time.perf_counter() > self.deadline:
                raise TimeIsUp("the downsets could not be enumerated in time")
            self.enumerated += len(rows)
            kept.append(_inside(self.loads, rows, bounds))
            if most is not None and self.enumerated > most:
                return self.lower, _joined(kept)
            while sum(map(_bytes_of, kept)) > room and tau > self.lower + 1:
                tau = (self.lower + tau) // 2
                bounds = self._windows(tau)
                kept = [chosen(t, bounds.inside(t.sums, t.split)) for t in kept]
        return tau, _sorted(_joined(kept))

    def _search(
        self, table: Table, tau: int, deadline: float, *, whole: bool = True
    ) -> Division | None:
        """The division on the fewest accelerators below `tau`; `whole` says that every downset that
        may end a stage below it is in the table."""
        bounds = self._windows(tau)
        table = chosen(table, bounds.inside(table.sums, table.split))
        size = len(self.blocks.work)
        if not len(table.split) or table.sums.blocks[0] or table.sums.blocks[-1] < size:
            return None
        on_accelerator, on_cpu = AcceleratorLoads(self.loads, table), CpuLoads(table)
        rows = Rows(
            bits=table.bits,
            weight=table.sums.work,
            needs=bounds.needs(table.sums, table.split),
            before=self.blocks.before,
            heavy=self.loads.heavy,
        )
        first = Kind(self.num_accelerators, on_accelerator, tau - 1)
        second = Kind(self.num_cpus, on_cpu, bounds.relief[min(1, self.num_cpus)])
        if whole and len(rows.weight) > MANY:
            first, second = self._with_more(rows, first, second, table)
        pieces = fewest_devices(rows, first, second, tau, deadline)
        if pieces is None:
            return None
        kinds = (on_accelerator, on_cpu)
        largest = max(_load(kinds[piece.second], piece) for piece in pieces)
        flags = flags_of(table.bits.T, size).astype(bool)
        return Division(
            largest,
            tuple(
                Stage(
                    p.second,
                    tuple(np.flatnonzero(flags[:, p.target] & ~flags[:, p.source]).tolist()),
                )
                for p in pieces
            ),
        )

    def _with_more(self, rows: Rows, first: Kind, second: Kind, table: Table) -> tuple[Kind, Kind]:
        loads = self.loads
        cpu = least_more(rows, loads.heavy, loads.cpu_work)
        if loads.binding:
            return first, second._replace(more=cpu)
        accelerator = least_more(rows, loads.heavy & (loads.barred == 0), loads.alone)
        return first._replace(more=accelerator, excess=table.split), second._replace(more=cpu)


def _orders(blocks: Blocks) -> Iterator[list[int]]:
    """Topological orders that are worth a try."""
    size = len(blocks.work)
    yield list(range(size))
    after: list[list[int]] = [[] for _ in range(size)]
    for block, row in enumerate(blocks.before):
        for earlier in row:
            after[earlier].append(block)
    yield depth_first_order(after)[::-1]
    mirrored = [[size - 1 - q for q in row] for row in reversed(after)]
    yield [size - 1 - block for block in depth_first_order(mirrored)][::-1]


def _order_near(blocks: Blocks, best: Division, rng: np.random.Generator) -> list[int]:
    """A topological order that goes stage by stage, but for blocks near the ends."""
    size = len(blocks.work)
    rank = rng.normal(0.0, RANK_SPREAD, size)
    for index, stage in enumerate(best.stages):
        rank[list(stage.blocks)] += index
    after: list[list[int]] = [[] for _ in range(size)]
    waiting = [len(row) for row in blocks.before]
    for block, row in enumerate(blocks.before):
        for earlier in row:
            after[earlier].append(block)
    ready = [(float(rank[b]), b) for b in range(size) if not waiting[b]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready)[1])
        for later in after[order[-1]]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, (float(rank[later]), later))
    return order


def _inside(loads: BlockLoads, rows: Bits, bounds: Windows) -> Table:
    """The rows of bits that may end a stage."""
    flags = flags_of(rows, len(loads.work))
    totals = sums(loads, flags)
    near = np.flatnonzero(bounds.inside(totals, 0.0))
    held = counts(loads, flags[:, near])
    table = Table(
        bits=rows[near].T,
        sums=Sums(*(column[near] for column in totals)),
        counts=held,
        split=split_costs(loads, held),
    )
    return chosen(table, bounds.inside(table.sums, table.split))


def _sorted(table: Table) -> Table:
    return chosen(table, np.lexsort((table.sums.blocks, table.sums.work)))


def _joined(tables: Sequence[Table]) -> Table:
    return Table(
        bits=np.concatenate([t.bits for t in tables], axis=1),
        sums=Sums(*(np.concatenate(c) for c in zip(*(t.sums for t in tables), strict=True))),
        counts=np.concatenate([t.counts for t in tables], axis=1),
        split=np.concatenate([t.split for t in tables]),
    )


def _bytes_of(table: Table) -> int:
    columns = (table.bits, *table.sums, table.counts, table.split)
    return sum(column.nbytes for column in columns)


def _load(loads: AcceleratorLoads | CpuLoads, piece: Piece) -> int:
    target, source = np.array([piece.target]), np.array([piece.source])
    return int(loads.towards(target)(source, np.zeros(1, dtype=np.int64))[0, 0])
