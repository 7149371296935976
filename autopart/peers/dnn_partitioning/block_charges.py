"""dnn-partitioning's charges for many stages at once, in whole numbers.

Latencies and costs are multiples of one quantum, a power of two. The largest charge that matters,
the span, is 2**51 to 2**52 quanta. Sums are then exact in any order, and monotone under inclusion.
Rounding changes a charge by at most half a quantum for each block and link in it. An amount above
the span counts as CLIPPED: no split within the span has it.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autopart.peers.dnn_partitioning.blocks import Blocks

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CHARGE_BITS = 52
"""The span has this many bits in quanta."""

TOO_MUCH = 1 << 60
"""The charge for a stage that may not be: too large, or with a block that cannot run there."""

CLIPPED = 1 << 53
"""The most that a single latency or cost counts."""

ROUNDING = 1e-10
"""Relative error up to which a largest charge is precise enough."""


class BlockCharges:
    """Block charges in quanta, one entry per block in each array."""

    def __init__(self, blocks: Blocks, size_limit: float, span: float | None = None) -> None:
        """`span` is the largest charge that matters. By default this is the sum over all
        accelerators."""
        self.blocks, self.limit = blocks, size_limit
        usable = np.array(blocks.on_accelerator, dtype=bool)
        if span is None:
            bearable = [w for w, can in zip(blocks.work, usable, strict=True) if can]
            span = math.fsum(bearable) + math.fsum(link.cost for link in blocks.links)
            # Where nothing can run on an accelerator, the CPUs' work alone matters.
            span = span or math.fsum(blocks.cpu_work)
        self.scale = 2.0 ** (CHARGE_BITS - math.frexp(span)[1]) if span else 1.0
        """Quanta per unit of the file's time."""
        work = self._whole(blocks.work)
        usable &= work < CLIPPED
        self.work = np.where(usable, work, 0)
        self.cpu_work = self._whole(blocks.cpu_work)
        self.costs = self._whole([link.cost for link in blocks.links])
        linked = np.zeros(len(self.work), dtype=np.int64)
        for link, cost in zip(blocks.links, self.costs.tolist(), strict=True):
            linked[list(link.blocks)] += cost
        self.alone = self.work + linked
        """An accelerator's charge for the block alone."""
        self.heavy = self.work >= linked
        """Blocks whose work is at least the cost of all their links: a stage without them never
        pays more."""
        self.barred = (~usable).astype(np.int64)
        """1 where a block cannot run on an accelerator."""
        largest = math.fsum(blocks.sizes)
        size_scale = 2.0 ** (60 - math.frexp(largest)[1]) if largest else 1.0
        sizes = np.ceil(np.array(blocks.sizes) * size_scale).astype(np.int64)
        self.sizes = np.where(usable, sizes, 0)
        self.size_limit = math.floor(min(size_limit, 2 * largest) * size_scale)
        self.binding = int(self.sizes.sum()) > self.size_limit

    def _whole(self, values: Sequence[float]) -> Ints:
        """Amounts in quanta, clipped."""
        scaled = np.rint(np.array(values, dtype=float) * self.scale)
        return np.minimum(scaled, CLIPPED).astype(np.int64)

    def is_fine_for(self, time: float) -> bool:
        """Whether quanta give a largest charge near `time` precisely enough."""
        terms = len(self.work) + len(self.costs)
        return terms / 2 / self.scale <= ROUNDING * time

    def quanta(self, time: float) -> int:
        """The smallest whole number of quanta that is no less than `time`."""
        return math.ceil(time * self.scale)

    def time(self, quanta: int) -> float:
        """Quanta in the file's unit."""
        return quanta / self.scale

    def intervals(self, order: Sequence[int], cuts: Ints) -> tuple[Ints, Ints]:
        """Charges on an accelerator and on a CPU for all intervals in an order, two arrays at [i,
        j], i <= j.

        Interval [i, j] holds the blocks order[cuts[i] : cuts[j]]. `cuts` are ascending places, from
        0 to the number of blocks.
        """
        at = np.array(order, dtype=np.int64)
        piece = np.empty(len(order), dtype=np.int64)
        piece[at] = np.searchsorted(cuts, np.arange(len(order)), side="right") - 1
        # Step 1: split links.
        charges = self._split_costs(piece, len(cuts))
        # Step 2: work, as a difference between prefix sums.
        prefix = _prefix(self.work[at])[cuts]
        charges += prefix[None, :] - prefix[:, None]
        # Step 3: intervals that an accelerator cannot take.
        sizes, barred = _prefix(self.sizes[at])[cuts], _prefix(self.barred[at])[cuts]
        too_large = sizes[None, :] - sizes[:, None] > self.size_limit
        charges[too_large | (barred[None, :] > barred[:, None])] = TOO_MUCH
        cpu = _prefix(self.cpu_work[at])[cuts]
        return charges, cpu[None, :] - cpu[:, None]

    def _split_costs(self, piece: Ints, size: int) -> Ints:
        """The link costs that pieces i … j - 1 split, at [i, j]; `piece` has an entry per block.

        Each link adds its cost to rectangles in (i, j). The sums over all corners give the array.
        """
        change = np.zeros((size + 1, size + 1), dtype=np.int64)

        def add(first: int, last: int, low: int, high: int, cost: int) -> None:
            """Add to all i in first … last - 1 and j in low … high - 1."""
            change[first, low] += cost
            change[first, high] -= cost
            change[last, low] -= cost
            change[last, high] += cost

        for link, cost in zip(self.blocks.links, self.costs.tolist(), strict=True):
            ends = np.sort(piece[list(link.blocks)]).tolist()
            # The whole plane pays, except intervals with none of the link's blocks, or with all.
            add(0, size, 0, size, cost)
            for low, high in zip([-1, *ends], [*ends, size - 1], strict=True):
                add(low + 1, high + 1, low + 1, high + 1, -cost)  # holds none
            add(0, ends[0] + 1, ends[-1] + 1, size, -cost)  # holds all
        return change.cumsum(axis=0).cumsum(axis=1)[:size, :size]


def _prefix(values: Ints) -> Ints:
    """Sums over 0, 1, 2, … values."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])
