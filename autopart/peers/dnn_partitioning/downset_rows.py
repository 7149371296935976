"""Downsets as rows for the dynamic program (downset_dp.py), and the rows that beat others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.downsets import WORD, Bits, mask_of
from autopart.peers.dnn_partitioning.block_charges import Flags, Ints
from autopart.peers.dnn_partitioning.downset_table import Floats


class DownsetRows(NamedTuple):
    """Downsets that may end a stage: the first row is empty, the last one full."""

    bits: Bits
    """By word and row."""
    weight: Ints
    """Ascending; a superset stands behind, at a weight no smaller."""
    needs: Ints
    """n_m at [m, row]."""
    before: Sequence[Sequence[int]]
    """The elements that must precede each element."""
    heavy: Flags
    """Elements without which a stage never has a larger charge, whatever else it holds."""


def undominated(rows: DownsetRows, sources: Ints, known: Ints) -> Ints:
    """The sources that no known row beats: a row beats another if it has one heavy element more."""
    keys = hashes(rows.bits[:, known])
    order = np.argsort(keys, kind="stable")
    keys, known = keys[order], known[order]
    for element in np.flatnonzero(rows.heavy).tolist():
        smaller = _may_follow(rows, element, sources)
        if not len(smaller):
            continue
        # Step 1: each source with the element added, as bits.
        larger = rows.bits[:, smaller]
        larger[element // WORD] |= np.uint64(1 << (element % WORD))
        # Step 2: look these up among the known rows, by hash and then by bits.
        found = np.minimum(np.searchsorted(keys, hashes(larger)), len(keys) - 1)
        beaten = (rows.bits[:, known[found]] == larger).all(axis=0)
        sources = np.setdiff1d(sources, smaller[beaten], assume_unique=True)
    return sources


def least_more(rows: DownsetRows, elements: Flags, charges: Ints) -> Floats:
    """By row, the smallest charge among those elements that may come next."""
    found = np.full(len(rows.weight), np.inf)
    for element in np.flatnonzero(elements).tolist():
        next_ones = _may_follow(rows, element, np.arange(len(rows.weight)))
        found[next_ones] = np.minimum(found[next_ones], charges[element])
    return found


def _may_follow(rows: DownsetRows, element: int, places: Ints) -> Ints:
    """The places whose downset lacks the element and has everything that precedes it."""
    may = (rows.bits[element // WORD, places] & np.uint64(1 << (element % WORD))) == 0
    masks = mask_of(rows.before[element], len(rows.bits))
    for word in np.flatnonzero(masks):
        may &= (rows.bits[word, places] & masks[word]) == masks[word]
    return places[may]


def hashes(columns: Bits) -> Bits:
    """A number for each downset; two may have the same, so bits are compared too."""
    found = np.zeros(columns.shape[1], dtype=np.uint64)
    for word in columns:
        found = (found ^ word) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found
