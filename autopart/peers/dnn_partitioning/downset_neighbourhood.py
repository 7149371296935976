"""The downsets around given ones: a few steps with one element more or one element less."""

from collections.abc import Sequence

import numpy as np

from autopart.downsets import WORD, Bits
from autopart.peers.dnn_partitioning.block_charges import Flags, Ints
from autopart.peers.dnn_partitioning.downset_rows import hashes


def downsets_near(before: Sequence[Sequence[int]], centres: Flags, count: int) -> Bits:
    """About `count` downsets nearest to each row in `centres`, or all that there are; each once.

    `before[e]` names the elements that precede e. Centres are downsets as flags at [row, element].
    The result is rows of bits (autopart/downsets.py).
    """
    size = centres.shape[1]
    precedes = np.zeros((size, size), dtype=np.float32)
    for element, row in enumerate(before):
        precedes[list(row), element] = 1
    found = np.concatenate([_packed(_ball(precedes, c[None, :], count)) for c in centres])
    return found[_first_of_each(found)]


def _ball(precedes: np.ndarray, centre: Flags, count: int) -> Flags:
    """Breadth first from one downset."""
    seen = centre
    edge = centre
    while len(seen) < count and len(edge):
        # Step 1: elements that may come: all that precede them are in.
        lacking = (~edge).astype(np.float32) @ precedes
        may_come = ~edge & (lacking == 0)
        # Step 2: elements that may leave: nothing in the downset needs them.
        followed = edge.astype(np.float32) @ precedes.T
        may_leave = edge & (followed == 0)
        # Step 3: each such change makes a neighbour; keep those not seen yet.
        row, element = np.nonzero(may_come | may_leave)
        moved = edge[row]
        moved[np.arange(len(row)), element] ^= True
        both = np.concatenate([seen, moved])
        first = _first_of_each(_packed(both))
        edge = both[first[first >= len(seen)]][: max(0, count - len(seen))]
        seen = np.concatenate([seen, edge])
    return seen


def _first_of_each(rows: Bits) -> Ints:
    """The first place for each downset. Two with one hash count as one, which loses at most one
    try."""
    return np.sort(np.unique(hashes(rows.T), return_index=True)[1])


def _packed(flags: Flags) -> Bits:
    """Flags as rows of 64-bit words."""
    words = max(1, -(-flags.shape[1] // WORD))
    bytes_ = np.zeros((len(flags), words * (WORD // 8)), dtype=np.uint8)
    packed = np.packbits(flags, axis=1, bitorder="little")
    bytes_[:, : packed.shape[1]] = packed
    return bytes_.view(np.uint64)
