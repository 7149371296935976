"""A table of downsets of blocks, with their sums and the links that they split.

Symbols   n(e, D)   the number of blocks in both link e and downset D;  |e|  blocks in link e
          split(D)  the cost of all links that D splits, 0 < n(e, D) < |e|
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.downsets import Bits
from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Flags, Ints

Floats = npt.NDArray[np.float64]

Counts = npt.NDArray[np.uint8 | np.uint16]
"""Small whole numbers."""

HALF = 30
"""Bits in the lower half of a large number: both halves add up exactly in floating point."""


class BlockSums(NamedTuple):
    """Sums over the blocks in downsets, one entry per downset in each array."""

    work: Ints
    """Work on an accelerator, in quanta."""
    cpu_work: Ints
    """Work on a CPU, in quanta."""
    sizes: Ints
    """Sizes, in size units."""
    barred: Ints
    """Blocks that cannot run on an accelerator."""
    blocks: Ints
    """Number of blocks."""


class DownsetTable(NamedTuple):
    """Downsets and their amounts; the last axis in every array is the downset."""

    bits: Bits
    """By word and downset (autopart/downsets.py)."""
    sums: BlockSums
    """Sums over each downset's blocks."""
    counts: Counts
    """n(e, D), by link and downset."""
    split: Floats
    """split(D), in quanta."""


def flags_of(rows: Bits, num_blocks: int) -> npt.NDArray[np.uint8]:
    """Downsets, given as rows of bits, as 0 and 1 at [block, row]."""
    packed = np.ascontiguousarray(rows).view(np.uint8)
    return np.unpackbits(packed, axis=1, bitorder="little", count=num_blocks).T.copy()


def sums(charges: BlockCharges, flags: npt.NDArray[np.uint8]) -> BlockSums:
    """The sums for downsets given as flags."""
    low = (1 << HALF) - 1
    columns = [charges.work, charges.barred, np.ones_like(charges.work)]
    columns += [
        charges.cpu_work >> HALF,
        charges.cpu_work & low,
        charges.sizes >> HALF,
        charges.sizes & low,
    ]
    # One matrix product for all columns; large numbers are split in two, so that it is exact.
    table = np.stack(columns).astype(float)
    work, barred, blocks, *halves = (table @ flags.astype(float)).astype(np.int64)
    cpu_work, sizes = ((high << HALF) + rest for high, rest in (halves[:2], halves[2:]))
    return BlockSums(work, cpu_work, sizes, barred, blocks)


def counts(charges: BlockCharges, flags: npt.NDArray[np.uint8]) -> Counts:
    """n(e, D) for downsets given as flags."""
    links = charges.blocks.links
    longest = max((len(link.blocks) for link in links), default=0)
    kind = np.uint8 if longest < 256 else np.uint16
    found = np.empty((len(links), flags.shape[1]), dtype=kind)
    for number, link in enumerate(links):
        found[number] = flags[list(link.blocks)].sum(axis=0, dtype=kind)
    return found


def split_costs(charges: BlockCharges, counts: Counts) -> Floats:
    """split(D) for downsets given by their counts."""
    found = np.zeros(counts.shape[1])
    lengths = [len(link.blocks) for link in charges.blocks.links]
    for row, length, cost in zip(counts, lengths, charges.costs.tolist(), strict=True):
        found += np.where((row > 0) & (row < length), float(cost), 0.0)
    return found


def chosen(table: DownsetTable, where: Flags | Ints) -> DownsetTable:
    """The table with some downsets only, chosen by flags or places."""
    return DownsetTable(
        bits=table.bits[:, where],
        sums=BlockSums(*(column[where] for column in table.sums)),
        counts=table.counts[:, where],
        split=table.split[where],
    )


def sorted_by_work(table: DownsetTable) -> DownsetTable:
    """The table with its downsets in ascending order of work."""
    return chosen(table, np.lexsort((table.sums.blocks, table.sums.work)))


def joined(tables: Sequence[DownsetTable]) -> DownsetTable:
    """One table with all downsets."""
    return DownsetTable(
        bits=np.concatenate([t.bits for t in tables], axis=1),
        sums=BlockSums(*(np.concatenate(c) for c in zip(*(t.sums for t in tables), strict=True))),
        counts=np.concatenate([t.counts for t in tables], axis=1),
        split=np.concatenate([t.split for t in tables]),
    )


def bytes_of(table: DownsetTable) -> int:
    """Bytes in the table's arrays."""
    columns = (table.bits, *table.sums, table.counts, table.split)
    return sum(column.nbytes for column in columns)
