"""dnn-partitioning's charges for the stages between downsets of blocks.

Symbols   D ⊂ D'    downsets of blocks;  S = D' - D  a stage
          n(e, D), |e|, split(D)  as in downset_table.py

S splits a link e unless it holds no block in it, n(e, D') = n(e, D), or all. Consider links that D
does not split: S splits exactly those that D' splits. Hence

    accelerator(S) = work(D') - work(D) + split(D')
                     + sum over links e that D splits of c(e) ([n(e, D') = |e|] - [n(e, D') = n(e, D)])

For many D and D' the last sum is a product of two matrices. The first has a row for each D, with a
1 at each pair (e, n(e, D)) that D splits. The second has a column for each D', with c(e) times the
bracket for that pair. All numbers are whole and below 2**53, so floating point adds them up
exactly.
"""

from collections.abc import Callable

import numpy as np

from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Ints
from autopart.peers.dnn_partitioning.downset_table import Counts, DownsetTable, Floats

ChargesFrom = Callable[[Ints, Ints], Floats]
"""Charges for the stages from rows to some targets, given by their places, at [source, target].

Infinite where there may be no such stage. Entries only count where the target includes the source.
"""


class AcceleratorCharges:
    """Charges on an accelerator for the stages between the downsets in a table."""

    def __init__(self, charges: BlockCharges, table: DownsetTable) -> None:
        self.charges, self.table = charges, table
        self.costs = charges.costs.astype(float)
        self.lengths = np.array([len(link.blocks) for link in charges.blocks.links], dtype=np.int64)
        self.work = table.sums.work.astype(float)
        self.any_barred = bool(charges.barred.any())

    def towards(self, targets: Ints) -> ChargesFrom:
        """Charges for stages that end at the downsets `targets`."""
        table, sums = self.table, self.table.sums
        reached = self.work[targets] + table.split[targets]
        counts = table.counts[:, targets]
        sizes, barred = sums.sizes[targets], sums.barred[targets]

        def charges_from(sources: Ints, places: Ints) -> Floats:
            found = reached[places] - self.work[sources][:, None]
            self._charge_links(table.counts[:, sources], counts[:, places], found)
            if self.charges.binding:
                taken = sizes[places] - sums.sizes[sources][:, None]
                found[taken > self.charges.size_limit] = np.inf
            if self.any_barred:
                found[barred[places] > sums.barred[sources][:, None]] = np.inf
            return found

        return charges_from

    def _charge_links(self, before: Counts, after: Counts, found: Floats) -> None:
        """Add the last sum in the formula: links that the sources split."""
        split = (before > 0) & (before < self.lengths[:, None])
        link, source = np.nonzero(split)
        if not len(link):
            return
        # The distinct pairs (link, count) that a source splits: one row each in the second matrix.
        pairs, place = np.unique(link * (1 << 16) + before[split], return_inverse=True)
        ones = np.zeros((before.shape[1], len(pairs)))
        ones[source, place] = 1.0
        links, before_counts = pairs >> 16, pairs & 0xFFFF
        now = after[links]
        bracket = (now == self.lengths[links][:, None]).astype(float)
        bracket -= now == before_counts[:, None]
        bracket *= self.costs[links][:, None]
        found += ones @ bracket


class CpuCharges:
    """The same on a CPU."""

    def __init__(self, table: DownsetTable) -> None:
        self.cpu_work = table.sums.cpu_work

    def towards(self, targets: Ints) -> ChargesFrom:
        """Charges for stages that end at the downsets `targets`."""
        reached = self.cpu_work[targets]

        def charges_from(sources: Ints, places: Ints) -> Floats:
            return (reached[places] - self.cpu_work[sources][:, None]).astype(float)

        return charges_from
