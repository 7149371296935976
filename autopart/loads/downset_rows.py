"""The downsets of a partial order as rows of bits: all of them, or about how many there are."""

from collections.abc import Iterator, Sequence

import numpy as np

from autopart.loads.blocks import WORD, Bits


def enumerate_downsets(before: Sequence[Sequence[int]], most_rows: int) -> Iterator[Bits]:
    """Every downset once, as rows of bits (element e is bit e % 64 of word e // 64), in pieces.

    `before[e]` names the elements that must precede e; all are smaller than e. Element by element,
    each downset of those before it is kept as it is and, where it may be, with the element. Pieces
    above `most_rows` are halved, so that memory stays within about (elements) x most_rows rows.
    """
    words = max(1, -(-len(before) // WORD))
    needs = [mask_of(row, words) for row in before]
    waiting = [(0, np.zeros((1, words), dtype=np.uint64))]
    while waiting:
        element, rows = waiting.pop()
        while element < len(before) and len(rows) <= most_rows:
            rows = _with_element(rows, element, needs[element])
            element += 1
        if element == len(before):
            yield rows
        else:
            middle = len(rows) // 2
            waiting += [(element, rows[middle:]), (element, rows[:middle])]


def estimated_downsets(before: Sequence[Sequence[int]], sample: int) -> float:
    """About how many downsets there are: how much each element multiplies those of a sample."""
    words = max(1, -(-len(before) // WORD))
    rows, factor = np.zeros((1, words), dtype=np.uint64), 1.0
    rng = np.random.default_rng(0)
    for element, row in enumerate(before):
        rows = _with_element(rows, element, mask_of(row, words))
        if len(rows) > sample:
            factor *= len(rows) / sample
            rows = rows[rng.choice(len(rows), sample, replace=False)]
    return factor * len(rows)


def mask_of(elements: Sequence[int], words: int) -> Bits:
    """The bits of some elements as words."""
    mask = np.zeros(words, dtype=np.uint64)
    for element in elements:
        mask[element // WORD] |= np.uint64(1 << (element % WORD))
    return mask


def _with_element(rows: Bits, element: int, needs: Bits) -> Bits:
    fits = np.ones(len(rows), dtype=bool)
    for word in np.flatnonzero(needs):
        fits &= (rows[:, word] & needs[word]) == needs[word]
    more = rows[fits]
    more[:, element // WORD] |= np.uint64(1 << (element % WORD))
    return np.concatenate([rows, more])
