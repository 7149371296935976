"""dnn-partitioning's loads of the stages between downsets of blocks.

Symbols   D ⊂ D'    downsets of blocks;  S = D' - D  a stage
          n(e, D)   how many blocks of link e are in D;  |e|  how many it has
          split(D)  the cost of all links that D splits, 0 < n(e, D) < |e|

S splits a link e unless it holds none of it, n(e, D') = n(e, D), or all of it. Of the links that D does
not split, S splits just those that D' splits. Hence

    accelerator(S) = work(D') - work(D) + split(D')
                     + sum over links e that D splits of c(e) ([n(e, D') = |e|] - [n(e, D') = n(e, D)])

For many D and D' the last sum is a product of two matrices: one row for each D, with a 1 at each pair
(e, n(e, D)) that it splits; one column for each D', with c(e) times the bracket of that pair. All numbers
are whole and below 2**53, so that floating point adds them up exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.loads.blocks import Bits, BlockLoads, Flags, Ints

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[Any]
"""Small whole numbers, uint8 or uint16."""

LoadsFrom = Callable[[Ints, Ints], Floats]
"""The loads of the stages from rows to some of the targets, given by their places, at [source, target]; infinite where there
may be no such stage. Only entries where the target includes the source mean anything."""

HALF = 30
"""Bits of the lower half of a large number, so that both halves add up exactly in floating point."""


class Sums(NamedTuple):
    """What the blocks of each downset add up to, one entry for each."""

    work: Ints
    cpu_work: Ints
    sizes: Ints
    barred: Ints
    """Blocks that cannot run on an accelerator."""
    blocks: Ints
    """How many there are."""


class Table(NamedTuple):
    """Downsets and what is known of each; the last axis of every array is the downset."""

    bits: Bits
    """By word and downset; solvers/max_load/downsets.py says how."""
    sums: Sums
    counts: Counts
    """n(e, D), by link and downset."""
    split: Floats


def flags_of(rows: Bits, num_blocks: int) -> npt.NDArray[np.uint8]:
    """Downsets, given as rows of bits, as 0 and 1 at [block, row]."""
    packed = np.ascontiguousarray(rows).view(np.uint8)
    return np.unpackbits(packed, axis=1, bitorder="little", count=num_blocks).T.copy()


def sums(loads: BlockLoads, flags: npt.NDArray[np.uint8]) -> Sums:
    """The sums of downsets given as flags."""
    low = (1 << HALF) - 1
    columns = [loads.work, loads.barred, np.ones_like(loads.work)]
    columns += [
        loads.cpu_work >> HALF,
        loads.cpu_work & low,
        loads.sizes >> HALF,
        loads.sizes & low,
    ]
    table = np.stack(columns).astype(float)
    work, barred, blocks, *halves = (table @ flags.astype(float)).astype(np.int64)
    cpu_work, sizes = ((high << HALF) + rest for high, rest in (halves[:2], halves[2:]))
    return Sums(work, cpu_work, sizes, barred, blocks)


def counts(loads: BlockLoads, flags: npt.NDArray[np.uint8]) -> Counts:
    """n(e, D) of downsets given as flags."""
    links = loads.blocks.links
    longest = max((len(link.blocks) for link in links), default=0)
    kind = np.uint8 if longest < 256 else np.uint16
    found = np.empty((len(links), flags.shape[1]), dtype=kind)
    for number, link in enumerate(links):
        found[number] = flags[list(link.blocks)].sum(axis=0, dtype=kind)
    return found


def split_costs(loads: BlockLoads, counts: Counts) -> Floats:
    """split(D) of downsets given by their counts."""
    found = np.zeros(counts.shape[1])
    lengths = [len(link.blocks) for link in loads.blocks.links]
    for row, length, cost in zip(counts, lengths, loads.costs.tolist(), strict=True):
        found += np.where((row > 0) & (row < length), float(cost), 0.0)
    return found


def chosen(table: Table, where: Flags | Ints) -> Table:
    """The table of some of its downsets, by flags or places."""
    return Table(
        bits=table.bits[:, where],
        sums=Sums(*(column[where] for column in table.sums)),
        counts=table.counts[:, where],
        split=table.split[where],
    )


class AcceleratorLoads:
    """Loads on an accelerator of the stages between the downsets of a table."""

    def __init__(self, loads: BlockLoads, table: Table) -> None:
        self.loads, self.table = loads, table
        self.costs = loads.costs.astype(float)
        self.lengths = np.array([len(link.blocks) for link in loads.blocks.links], dtype=np.int64)
        self.work = table.sums.work.astype(float)
        self.any_barred = bool(loads.barred.any())

    def towards(self, targets: Ints) -> LoadsFrom:
        """The loads of stages that end at the downsets `targets`."""
        table, sums = self.table, self.table.sums
        reached = self.work[targets] + table.split[targets]
        counts = table.counts[:, targets]
        sizes, barred = sums.sizes[targets], sums.barred[targets]

        def loads_from(sources: Ints, places: Ints) -> Floats:
            found = reached[places] - self.work[sources][:, None]
            self._charge_links(table.counts[:, sources], counts[:, places], found)
            if self.loads.binding:
                held = sizes[places] - sums.sizes[sources][:, None]
                found[held > self.loads.size_limit] = np.inf
            if self.any_barred:
                found[barred[places] > sums.barred[sources][:, None]] = np.inf
            return found

        return loads_from

    def _charge_links(self, before: Counts, after: Counts, found: Floats) -> None:
        split = (before > 0) & (before < self.lengths[:, None])
        link, source = np.nonzero(split)
        if not len(link):
            return
        pairs, place = np.unique(link * (1 << 16) + before[split], return_inverse=True)
        ones = np.zeros((before.shape[1], len(pairs)))
        ones[source, place] = 1.0
        links, held = pairs >> 16, pairs & 0xFFFF
        now = after[links]
        bracket = (now == self.lengths[links][:, None]).astype(float)
        bracket -= now == held[:, None]
        bracket *= self.costs[links][:, None]
        found += ones @ bracket


class CpuLoads:
    """The same on a CPU."""

    def __init__(self, table: Table) -> None:
        self.cpu_work = table.sums.cpu_work

    def towards(self, targets: Ints) -> LoadsFrom:
        """The loads of stages that end at the downsets `targets`."""
        reached = self.cpu_work[targets]

        def loads_from(sources: Ints, places: Ints) -> Floats:
            return (reached[places] - self.cpu_work[sources][:, None]).astype(float)

        return loads_from
