"""Downsets in a directed acyclic graph: enumerated, seen as bits, summed over.

A downset is a set of nodes that has the sources of all edges into it. The nodes ahead of a cut are one.
Where a graph has few downsets, a search over them covers every topological order.

There are two enumerations:

    downset_lattice       level by level with all covers, for up to some 10^5 downsets
    enumerate_downsets    node by node in limited memory without covers, for many millions

All other functions are views: sorted masks, boolean rows, byte rows, sums.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]
"""Bit rows in words: node v is bit v % 64 in word v // 64."""
Bytes = npt.NDArray[np.uint8]
"""Bit rows in bytes: node v is bit v % 8 in byte v // 8."""
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WORD = 64
"""Bits per word."""


class DownsetLattice(NamedTuple):
    """All downsets in a graph, smaller ones first, with their covers.

    A cover is a pair where the larger downset has exactly one node more.
    """

    masks: Sequence[int]
    """Each downset with node v as bit v; the first is empty, the last has all nodes."""
    grown: Sequence[tuple[int, int]]
    """For each downset except the first, a smaller downset's place and the node added to it."""
    covers: tuple[Ints, Ints]
    """For each cover the places that its smaller and its larger downset have, sorted by the smaller."""


class Covers(NamedTuple):
    """All covers, sorted by the larger downset."""

    source: Ints
    """The smaller downset's place."""
    target: Ints
    """The larger downset's place, ascending."""
    node: Ints
    """The node in which the two differ."""


def masks_of_edges(num_nodes: int, edges: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """For each node its sources as bits, and its readers as bits."""
    before, after = [0] * num_nodes, [0] * num_nodes
    for source, reader in edges:
        before[reader] |= 1 << source
        after[source] |= 1 << reader
    return before, after


def nodes_ahead(num_nodes: int, edges: Iterable[tuple[int, int]]) -> Flags:
    """Whether node u lies before node w, at [w, u], shape (n, n); edges go to larger numbers."""
    ahead = np.zeros((num_nodes, num_nodes), dtype=bool)
    # All nodes ahead of u are complete before any edge out of a later node is reached.
    for source, reader in sorted(edges, key=lambda edge: edge[1]):
        ahead[reader] |= ahead[source]
        ahead[reader, source] = True
    return ahead


def downset_lattice(
    before: Sequence[int], after: Sequence[int], most: int
) -> DownsetLattice | None:
    """All downsets, level by level; None where there are more than `most`.

    `before` and `after` have each node's sources and readers as bits. Nodes may have any order.
    O(covers · readers) time.
    """
    follow = [[(1 << w, before[w]) for w in bits(readers)] for readers in after]
    masks, grown = [0], list[tuple[int, int]]()
    parents, children = list[int](), list[int]()
    # The nodes that can be added to each downset, as bits.
    ready = [sum(1 << v for v, sources in enumerate(before) if not sources)]
    begin = 0
    while begin < len(masks):
        # Step 1: take all downsets with one size.
        end = len(masks)
        known: dict[int, int] = {}
        for at in range(begin, end):
            if len(masks) > most:
                return None
            mask, can = masks[at], ready[at]
            # Step 2: add each node that is ready, the lowest first.
            left = can
            while left:
                bit = left & -left
                left ^= bit
                larger = mask | bit
                child = known.get(larger)
                if child is None:
                    # Step 3: a downset met for the first time; readers may become ready.
                    v = bit.bit_length() - 1
                    next_ready = can ^ bit
                    for reader, needs in follow[v]:
                        if needs & larger == needs:
                            next_ready |= reader
                    child = known[larger] = len(masks)
                    masks.append(larger)
                    grown.append((at, v))
                    ready.append(next_ready)
                parents.append(at)
                children.append(child)
        begin = end
    return DownsetLattice(masks, grown, (np.array(parents, np.int64), np.array(children, np.int64)))


def covers_by_target(lattice: DownsetLattice) -> Covers:
    """All covers with their nodes, sorted by the larger downset."""
    source, target = lattice.covers
    order = np.argsort(target, kind="stable")
    source, target = source[order], target[order]
    masks = lattice.masks
    pairs = zip(source.tolist(), target.tolist(), strict=True)
    node = [(masks[a] ^ masks[b]).bit_length() - 1 for a, b in pairs]
    return Covers(source, target, np.array(node, np.int64))


def downsets_of(num_nodes: int, edges: Iterable[tuple[int, int]], most: int) -> list[int] | None:
    """All downsets as bit masks, sorted by size and then by mask; None above `most`."""
    found = downset_lattice(*masks_of_edges(num_nodes, edges), most)
    return found and sorted(found.masks, key=lambda mask: (mask.bit_count(), mask))


def bits(mask: int) -> Iterator[int]:
    """The positions where bits are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def pack(masks: Sequence[int], width: int) -> Bytes:
    """Each mask's lowest `width` bits as a byte row."""
    size = -(-width // 8)
    joined = b"".join([mask.to_bytes(size, "little") for mask in masks])
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(masks), size)


def unpack(masks: Sequence[int], width: int) -> Flags:
    """Each mask's lowest `width` bits as a boolean row."""
    rows = pack(masks, width)
    return np.unpackbits(rows, axis=1, count=width, bitorder="little").view(np.bool_)


def sum_bits(rows: Bytes, amounts: Floats) -> Floats:
    """For each row the sum over its set bits' amounts.

    A table per byte has the sums for all 256 values, so that a row costs one look-up per byte.
    """
    size = rows.shape[1]
    padded = np.zeros(8 * size)
    padded[: len(amounts)] = amounts
    # Step 1: each bit doubles the part of the table that is filled.
    table = np.zeros((size, 256))
    for bit in range(8):
        table[:, 1 << bit : 2 << bit] = table[:, : 1 << bit] + padded[bit::8, None]
    # Step 2: look up byte by byte.
    total = np.zeros(len(rows))
    for at in range(size):
        total += table[at][rows[:, at]]
    return total


def merge_bits(rows: Bytes, masks: Sequence[int], width: int) -> Bytes:
    """For each row the union over its set bits' masks; masks have `width` bits."""
    size = rows.shape[1]
    packed = pack(masks, width)
    padded = np.zeros((8 * size, packed.shape[1]), dtype=np.uint8)
    padded[: len(packed)] = packed
    merged = np.zeros((len(rows), packed.shape[1]), dtype=np.uint8)
    table = np.zeros((256, packed.shape[1]), dtype=np.uint8)
    for at in range(size):
        if padded[8 * at : 8 * at + 8].any():
            # Step 1: all unions within one byte, bit by bit as in `sum_bits`.
            for bit in range(8):
                table[1 << bit : 2 << bit] = table[: 1 << bit] | padded[8 * at + bit]
            # Step 2: look this byte up in every row.
            merged |= table[rows[:, at]]
    return merged


def enumerate_downsets(before: Sequence[Sequence[int]], most_rows: int) -> Iterator[Bits]:
    """Every downset once, as bit rows, in chunks.

    `before[v]` names node v's sources; all are smaller than v. Memory stays within about
    (nodes) x `most_rows` rows.
    """
    words = max(1, -(-len(before) // WORD))
    needs = [mask_of(row, words) for row in before]
    waiting = [(0, np.zeros((1, words), dtype=np.uint64))]
    while waiting:
        # Step 1: add node by node. Each downset stays, and grows by the node where it may.
        node, rows = waiting.pop()
        while node < len(before) and len(rows) <= most_rows:
            rows = _with_node(rows, node, needs[node])
            node += 1
        # Step 2: a chunk is ready, or too large. A large one is split in two, and each part goes on.
        if node == len(before):
            yield rows
        else:
            middle = len(rows) // 2
            waiting += [(node, rows[middle:]), (node, rows[:middle])]


def estimated_downsets(before: Sequence[Sequence[int]], sample: int) -> float:
    """About how many downsets there are, from how `sample` random rows grow node by node."""
    words = max(1, -(-len(before) // WORD))
    rows, factor = np.zeros((1, words), dtype=np.uint64), 1.0
    rng = np.random.default_rng(0)
    for node, row in enumerate(before):
        rows = _with_node(rows, node, mask_of(row, words))
        if len(rows) > sample:
            factor *= len(rows) / sample
            rows = rows[rng.choice(len(rows), sample, replace=False)]
    return factor * len(rows)


def mask_of(nodes: Sequence[int], words: int) -> Bits:
    """Some nodes as words with their bits set."""
    mask = np.zeros(words, dtype=np.uint64)
    for node in nodes:
        mask[node // WORD] |= np.uint64(1 << (node % WORD))
    return mask


def _with_node(rows: Bits, node: int, needs: Bits) -> Bits:
    """The rows, then each row that may have the node, with it."""
    fits = np.ones(len(rows), dtype=bool)
    for word in np.flatnonzero(needs):
        fits &= (rows[:, word] & needs[word]) == needs[word]
    more = rows[fits]
    more[:, node // WORD] |= np.uint64(1 << (node % WORD))
    return np.concatenate([rows, more])
