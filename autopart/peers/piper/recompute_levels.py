"""How many nodes in a stage change to their other choice until the stage fits into memory."""

from typing import NamedTuple

import numpy as np

from autopart.peers.piper.charges import SMALLEST_SAVING, Floats, Ints


class SavingLevels(NamedTuple):
    """Saving levels for pairs of downsets, one entry each."""

    pair: Ints
    """Place of the pair."""
    in_flight: Ints
    """The most microbatches in flight for which the level is enough."""
    added: Floats
    """Work that the level adds, in seconds."""


def most_in_flight(memory: float, per_each: Floats, fixed: Floats, most: Ints) -> Ints:
    """The largest y up to `most` with per_each y + fixed <= memory; 0 where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(
            per_each > 0, (memory - fixed) / per_each, np.where(fixed <= memory, most, 0)
        )
    y = np.clip(np.floor(ratio), 0, most).astype(np.int64)
    # A quotient may be off by one after rounding; the inequality itself decides.
    y += (y < most) & (per_each * (y + 1) + fixed <= memory)
    return y - ((y > 0) & (per_each * y + fixed > memory))


def ranges(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """For each place i every number first[i] … last[i]: the places and the numbers."""
    count = np.maximum(last - first + 1, 0)
    place = np.repeat(np.arange(len(first)), count)
    return place, np.arange(len(place)) - np.repeat(count.cumsum() - count - first, count)


def fewest_flips(
    sums: list[Floats], low: Ints, high: Ints, in_flight: Ints, need: Floats
) -> Floats:
    """The work added by the shortest beginning of an order that saves `need` bytes."""
    per_each, fixed, extra = sums

    def lacking(flips: Ints) -> Floats:
        """Bytes still to be saved after so many changes."""
        saved = (per_each[high, flips] - per_each[low, flips]) * in_flight
        return need - saved - (fixed[high, flips] - fixed[low, flips])

    least, most = np.zeros_like(low), np.full_like(low, per_each.shape[1] - 1)
    possible = lacking(most) <= 0
    # Bisection on the number of changes, for all stages at once.
    while (least < most).any():
        middle = (least + most) // 2
        enough = lacking(middle) < SMALLEST_SAVING
        most = np.where(enough, middle, most)
        least = np.where(enough, least, np.minimum(middle + 1, most))
    return np.where(possible, extra[high, most] - extra[low, most], np.inf)


def flip_each(extra: Floats, saving: Floats, need: Floats) -> Floats:
    """For each stage (row) the work that its nodes' changes add until `need` bytes are saved."""
    added = np.where(need <= 0, 0.0, np.inf)
    hard = np.flatnonzero((need > 0) & (np.clip(saving, 0, None).sum(axis=1) >= need))
    saving, extra, need = saving[hard], extra[hard], need[hard]
    # Step 1: each row in the order of extra work per byte.
    worth = saving > SMALLEST_SAVING
    ratio = np.where(worth, extra / np.where(worth, saving, 1.0), np.inf)
    order = np.argsort(ratio, axis=1, kind="stable")
    # Step 2: the first place in the order where enough is saved.
    saved = np.take_along_axis(np.where(worth, saving, 0.0), order, axis=1).cumsum(axis=1)
    slower = np.take_along_axis(np.where(worth, extra, 0.0), order, axis=1).cumsum(axis=1)
    enough = need[:, None] - saved < SMALLEST_SAVING
    last = np.where(enough.any(axis=1), enough.argmax(axis=1), saving.shape[1] - 1)
    added[hard] = slower[np.arange(len(hard)), last]
    return added


def levels(free: Ints, rows: Ints, in_flight: Ints, added: Floats) -> SavingLevels:
    """The saving levels for each stage: no saving up to `free` in flight, then its rows.

    Each level gets the least work among its own and all later ones.
    """
    last = np.ones(len(rows), dtype=bool)
    last[:-1] = rows[1:] != rows[:-1]
    later = np.append(added[1:], np.inf)
    later[last] = np.inf
    # Work need not grow with the microbatches in flight: a stage may choose as if it had more.
    for row in np.unique(rows[added > later]).tolist():
        mine = slice(*np.searchsorted(rows, [row, row + 1]))
        added[mine] = np.minimum.accumulate(added[mine][::-1])[::-1]
    later = np.append(added[1:], np.inf)
    later[last] = np.inf
    # Keep the last entry of each step of the stair.
    ends = np.flatnonzero((added != later) & np.isfinite(added))
    without = np.flatnonzero(free > 0)
    return SavingLevels(
        pair=np.concatenate([without, rows[ends]]),
        in_flight=np.concatenate([free[without], in_flight[ends]]),
        added=np.concatenate([np.zeros(len(without)), added[ends]]),
    )
