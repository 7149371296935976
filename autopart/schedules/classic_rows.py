"""The places where a stage may peak under GPipe and 1F1B, from its number of microbatches in flight alone."""

import functools
from collections.abc import Sequence

import numpy as np

from autopart.schedules.encoding import B, F
from autopart.schedules.in_flight import FIRST, MAX_SENDS, InFlight


@functools.lru_cache(maxsize=1024)
def classic_rows(microbatches: int) -> InFlight:
    """The places where a stage may peak under GPipe or 1F1B, with at most `microbatches` in flight.

    The next activation and a gradient have arrived, and at most `MAX_SENDS` messages are in transit.
    One row each has 0, 1, … gradients among them. A result that a running F makes comes on top, but
    no microbatch has more than one. Where all in transit are gradients, a backward runs. With none in
    flight, no backward has run.
    """
    rows = [
        [microbatches, 0, 1, 1, int(sent > 0), sent, min(microbatches, MAX_SENDS - sent + 1)]
        for sent in range(MAX_SENDS)
    ]
    # With more in flight, two gradients are in transit only where two microbatches fewer are left.
    if microbatches == 1:
        rows.append([microbatches, 0, 1, 1, 1, MAX_SENDS, 0])
    if not microbatches:
        rows = rows[:1]
    return _classic([B] * len(rows), rows)


@functools.lru_cache(maxsize=1024)
def all_at_once(microbatches: int) -> InFlight:
    """The places where a stage may peak that has all its microbatches in flight before its first backward.

    No gradient exists in the last forward, and none but the first backward's own then. Behind it one microbatch less
    is in flight, as under 1F1B. No further activation arrives.
    """
    away = min(microbatches, MAX_SENDS)
    rows = [
        [microbatches, 0, 0, 1, 0, 0, min(microbatches, MAX_SENDS + 1)],
        [microbatches, 0, 0, 1, 0, 0, away],
    ]
    later = classic_rows(microbatches - 1).counts[:, :, 0].tolist() if microbatches > 1 else []
    return _classic([F, FIRST, *[B] * len(later)], [*rows, *later])


def _classic(ops: Sequence[int], rows: Sequence[Sequence[int]]) -> InFlight:
    counts = np.array(rows)[:, :, None]
    none = np.full(len(counts), -1)
    return InFlight((0,), np.zeros(len(counts), int), np.array(ops), none, counts)
