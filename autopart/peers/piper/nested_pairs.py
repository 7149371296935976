"""The pairs of downsets that a stage may lie between, by its work and the devices alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.peers.piper.charges import Flags, Floats, Ints

ROUNDING = 1e-9
"""Slack for rounding: a share of a device, and relative for a time."""
MOST_PAIRS = 10_000_000
"""Pairs up to which they are listed; more would take gigabytes."""


class Pairs(NamedTuple):
    """Stages between two downsets, low inside high: arrays with the same length."""

    low: Ints
    """Place of the smaller downset."""
    high: Ints
    """Place of the larger downset."""
    spare: Ints
    """Most devices that the rest of the graph leaves to the stage."""
    after: Ints
    """Fewest devices that the nodes behind the stage need."""


class TooManyPairs(Exception):
    """More pairs of downsets than `MOST_PAIRS`: the caller searches along single orders instead."""


def prefixes(order: Sequence[int]) -> Flags:
    """The prefixes of an order as downsets [downset, node], the empty one first."""
    sets = np.zeros((len(order) + 1, len(order)), dtype=bool)
    for size, node in enumerate(order, 1):
        sets[size:, node] = True
    return sets


def nested_pairs(
    downsets: Flags, work: Floats, devices: int, counts: Ints, most_time: float
) -> Pairs:
    """The nested pairs of downsets [downset, node] whose stage leaves the rest enough devices.

    `work` [node] is in device-seconds. Work needs work / `most_time` devices. This is rounded up
    ahead of the stage and behind it. For the stage itself it is rounded up to one of the ascending
    `counts`. Raises TooManyPairs.
    """
    done = downsets @ work
    words = _words(downsets)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.nan_to_num(done / most_time)
    before = np.ceil(needed - ROUNDING)
    after = np.ceil(needed[-1] - needed - ROUNDING)
    fitting = np.append(counts, devices + 1)[np.searchsorted(counts, np.arange(devices + 2))]
    rows: list[tuple[Ints, ...]] = []
    total = 0
    for low in range(len(downsets) - 1):
        # Step 1: keep the ends that leave the stage the devices of its own work.
        spare = devices - before[low] - after[low + 1 :]
        own = np.ceil((needed[low + 1 :] - needed[low]) * (1 - ROUNDING) - ROUNDING)
        high = low + 1 + np.flatnonzero(own <= spare)
        # Step 2: the same with the next allowed count of devices.
        high = high[fitting[own[high - low - 1].astype(np.int64)] <= spare[high - low - 1]]
        # Step 3: keep the ends that hold every node of the start.
        high = high[((words[low] & ~words[high]) == 0).all(axis=1)]
        left = spare[high - low - 1].astype(np.int64)
        rows.append((np.full(len(high), low), high, left, after[high].astype(np.int64)))
        total += len(high)
        if total > MOST_PAIRS:
            raise TooManyPairs
    return Pairs(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _words(downsets: Flags) -> npt.NDArray[np.uint64]:
    """Each downset as 64-bit words."""
    packed = np.packbits(downsets, axis=1)
    padded = np.zeros((len(downsets), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)
