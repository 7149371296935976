"""The smallest largest charge for blocks on accelerators and CPUs, contiguous, with its proof.

Symbols   tau   a threshold, in quanta;  UB, LB   the best division's largest charge, and a lower bound

 1. UB: a few topological orders are cut exactly (order_dp.py).
 2. LB: the counting bound (bounds.py).
 3. While LB < UB: list the downsets that may end a stage below tau, and look for the fewest devices for
    tau = UB (downset_search.py). A division found lowers UB. If none is found, LB = UB, and the search
    itself is the proof.

Too many downsets, or pairs of them, mean a lower tau: an empty search below it still raises LB. At
the deadline the best division stands, with LB so far. Derivation and proof: docs/solvers.md.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.downsets import estimated_downsets
from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Flags, Ints
from autopart.peers.dnn_partitioning.blocks import BlockStage, Division
from autopart.peers.dnn_partitioning.bounds import counting_bound
from autopart.peers.dnn_partitioning.downset_dp import TimeIsUp
from autopart.peers.dnn_partitioning.downset_search import DownsetSearch
from autopart.peers.dnn_partitioning.downset_table import DownsetTable
from autopart.peers.dnn_partitioning.order_dp import cut_order
from autopart.peers.dnn_partitioning.orders import first_orders, order_near

MOST_CUTS = 1_500
"""Most places where an order may be cut."""

FIRST_LIMIT = 2
"""First the order is cut below this multiple of the lower bound, then below larger ones."""

FEW_DOWNSETS = 50_000
"""With more downsets, the upper bound is polished before all are listed."""

EASY_PAIRS = 1e8
"""With fewer pairs of downsets, tau is the upper bound at once."""

FIRST_SHARE = 1 / 8
"""Otherwise tau first lies at this share of the gap; the share doubles with each empty search."""

LEAST_SHARE = 1 / 1_000
"""Steps below this share of the gap are not worth their time."""

SLICE = 0.6
"""Share of the remaining time for one search; after a timeout the step is divided by four."""

NEAR = 500
"""Downsets around each stage end when polishing begins."""

FARTHEST = 8_000
"""Downsets around each stage end when polishing stops."""

POLISH_SHARE = 0.3
"""Share of the time for polishing, before the downsets are listed."""

SAMPLE = 2_000
"""Downsets in the sample that estimates their number."""

DOWNSETS_PER_SECOND = 1e6
"""Downsets listed per second, about. With more than fit, the time goes into a better division."""

ORDERS = 20
"""Orders near the best division that are cut between two rounds of polishing."""


class ContiguousOutcome(NamedTuple):
    """A search's best division, bound and proof."""

    best: Division | None
    """The best division; None where none is better than a start without stages."""
    lower: int
    """No division's largest charge is smaller, in quanta."""
    closed: bool
    """Whether a proof says that no division beats `best`, or the start."""
    downsets: int
    """Number of downsets listed, 0 where no search was needed."""
    searched: bool
    """Whether `lower` comes from an empty search."""


def minimise(
    charges: BlockCharges,
    num_accelerators: int,
    num_cpus: int,
    start: Division,
    deadline: float,
    enough: int = 0,
) -> ContiguousOutcome:
    """The best division, if it is better than `start`, which may have no stages.

    A largest charge up to `enough` ends the search. `deadline` is a reading from
    `time.perf_counter()`.
    """
    minimiser = _Minimiser(charges, num_accelerators, num_cpus, start, deadline)
    minimiser.lower = max(minimiser.lower, enough)
    return minimiser.run()


class _Minimiser:
    """The two bounds, and the steps that bring them together."""

    def __init__(
        self,
        charges: BlockCharges,
        num_accelerators: int,
        num_cpus: int,
        start: Division,
        deadline: float,
    ) -> None:
        self.charges, self.blocks = charges, charges.blocks
        size = len(self.blocks.work)
        self.num_accelerators = min(num_accelerators, size)
        self.num_cpus = min(num_cpus, size)
        self.deadline = deadline
        self.best = start if start.stages else None
        self.upper = start.largest
        self.lower = counting_bound(charges, self.num_accelerators, self.num_cpus)
        self.search = DownsetSearch(charges, self.num_accelerators, self.num_cpus, deadline)
        self.searched = False

    def run(self) -> ContiguousOutcome:
        """The division and bound when the bounds meet, or at the deadline."""
        for order in first_orders(self.blocks.before):
            self._cut(order)
            if self.lower >= self.upper or time.perf_counter() > self.deadline:
                break
        with contextlib.suppress(TimeIsUp):
            self._close()
        closed = self.lower >= self.upper
        return ContiguousOutcome(
            self.best, min(self.lower, self.upper), closed, self.search.enumerated, self.searched
        )

    def _cut(self, order: Sequence[int]) -> None:
        """Lower the upper bound to the best cut of one order."""
        cuts = self._cuts(order)
        charges = self.charges.intervals(order, cuts)
        counts = self.num_accelerators, self.num_cpus
        limit, cut = min(self.upper, FIRST_LIMIT * self.lower + 1), None
        # A small limit leaves a narrow band, so small limits come first.
        while cut is None and limit < self.upper:
            cut = cut_order(*charges, *counts, limit)
            limit *= 4
        if cut is None:
            cut = cut_order(*charges, *counts, self.upper)
        if cut is not None:
            self.upper = cut.largest
            ends = cuts.tolist()
            self.best = Division(
                cut.largest,
                tuple(
                    BlockStage(p.second, tuple(order[ends[p.first] : ends[p.last]]))
                    for p in cut.stages
                ),
            )

    def _cuts(self, order: Sequence[int]) -> Ints:
        """The places where an order may be cut: all, or those that split the work most evenly."""
        size = len(order)
        if size <= MOST_CUTS:
            return np.arange(size + 1)
        work = np.cumsum(self.charges.work[np.array(order)] + 1)
        even = np.searchsorted(work, np.linspace(0, work[-1], MOST_CUTS))
        return np.unique(np.concatenate([[0, size], even]))

    def _close(self) -> None:
        """Bring the bounds together by searches over downsets."""
        if self.lower >= self.upper:
            return
        # Step 1: list a few downsets; if these are all and their pairs are few, search at once.
        limit, table = self.search.listed(self.upper, self.lower, FEW_DOWNSETS)
        if limit < self.upper or self.search.pairs(table, self.upper) > EASY_PAIRS:
            # Step 2: otherwise lower the upper bound first, which leaves fewer downsets.
            self._polish(FARTHEST, POLISH_SHARE)
            number = estimated_downsets(self.blocks.before, SAMPLE)
            # Step 3: too many to list in time: only look for better divisions.
            if number > DOWNSETS_PER_SECOND * (self.deadline - time.perf_counter()):
                self._wander()
                raise TimeIsUp("there are too many downsets to enumerate in time")
            limit, table = self.search.listed(self.upper, self.lower)
        # Step 4: search below rising thresholds. A full table may need a threshold below the upper
        # bound.
        while self.lower < self.upper:
            self._climb(limit, table)
            if limit < self.upper:
                limit, table = self.search.listed(self.upper, self.lower)

    def _climb(self, limit: int, table: DownsetTable) -> None:
        """Search below one threshold after the other, until the bounds meet or one is the limit."""
        share = 1.0 if self.search.pairs(table, self.upper) < EASY_PAIRS else FIRST_SHARE
        most = 1.0
        while self.lower < min(limit, self.upper):
            # Step 1: a threshold at a share of the gap.
            gap = min(limit, self.upper) - self.lower
            tau = self.lower + max(1, math.ceil(gap * share))
            now = time.perf_counter()
            try:
                found = self.search.best_below(table, tau, now + (self.deadline - now) * SLICE)
            except TimeIsUp:
                # Step 2a: out of time: a smaller step.
                most, share = share / 2, share / 4
                if share < LEAST_SHARE or time.perf_counter() > self.deadline:
                    raise
                continue
            if found is None:
                # Step 2b: an empty search raises the lower bound, and the step.
                self.lower, self.searched = tau, True
                share = max(share, min(2 * share, most))
            else:
                # Step 2c: a division lowers the upper bound.
                self._improve(found)

    def _improve(self, found: Division) -> None:
        """Take a better division, and cut its order exactly."""
        self.upper, self.best = found.largest, found
        self._cut([block for stage in found.stages for block in stage.blocks])

    def _wander(self) -> None:
        """Lower the upper bound until the time is over.

        Rounds alternate orders near the best division with searches farther and farther around its
        stage ends.
        """
        rng, farthest = np.random.default_rng(0), FARTHEST
        while self.lower < self.upper and time.perf_counter() < self.deadline:
            for _ in range(ORDERS if self.best else 1):
                stages = self.best.stages if self.best else ()
                near = [stage.blocks for stage in stages]
                self._cut(order_near(self.blocks.before, near, rng))
            self._polish(farthest, 0.5)
            farthest = min(2 * farthest, 4 * FARTHEST)

    def _polish(self, farthest: int, share: float) -> None:
        """Lower the upper bound by searches among the downsets around the stage ends.

        There are up to `farthest` downsets per end, and a share of the remaining time.
        """
        count, began = NEAR, time.perf_counter()
        until = began + share * (self.deadline - began)
        while self.best is not None and self.lower < self.upper and count <= farthest:
            table = self.search.near(self._ends(), count, self.upper)
            try:
                found = self.search.best_below(table, self.upper, until, whole=False)
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
