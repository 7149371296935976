"""The moments of a rank's order: what it keeps while one of its actions runs, and the bytes there."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.cost.stage_totals import Array
from autopart.records.peak_bytes import summed_bytes
from autopart.schedules.encoding import I, W
from autopart.schedules.in_flight import FIRST, KINDS, MADE, STASH, InFlight


class Moments(NamedTuple):
    """The moments of one rank, those with equal counts of stash and equal workspace together."""

    in_flight: InFlight
    counts: npt.NDArray[np.int64]
    """n, shape (moments, stages)."""
    runs_whole: npt.NDArray[np.bool_]
    """Whether a stage runs F or B, shape (moments, stages)."""
    runs_input_grad: npt.NDArray[np.bool_]
    """Whether a stage runs I, shape (moments, stages)."""
    fullest: npt.NDArray[np.int64]
    """The rows of `counts` that no other row exceeds, for (2)."""
    order: npt.NDArray[np.int64]
    """The places in `in_flight`, sorted by their moments."""
    begins: npt.NDArray[np.int64]
    """Where each moment's places begin in `order`."""


def moments_of(in_flight: InFlight) -> Moments:
    """The moments of a rank's order."""
    kind = np.where(in_flight.op == I, 1, np.where(in_flight.op == W, 2, 0))
    column = np.where(kind == 2, 0, in_flight.column)
    keys = np.column_stack([in_flight.counts[:, STASH], column, kind])
    unlike, moment = np.unique(keys, axis=0, return_inverse=True)
    moment = np.ravel(moment)
    order = np.argsort(moment, kind="stable")
    stages = len(in_flight.stages)
    runs = np.arange(stages)[None, :] == unlike[:, stages, None]
    kept = np.unique(unlike[:, :stages], axis=0)
    below = (kept[:, None] <= kept[None]).all(axis=2).sum(axis=1) > 1
    return Moments(
        in_flight,
        counts=unlike[:, :stages],
        runs_whole=runs & (unlike[:, stages + 1, None] == 0),
        runs_input_grad=runs & (unlike[:, stages + 1, None] == 1),
        fullest=kept[~below],
        order=order,
        begins=np.searchsorted(moment[order], np.arange(len(unlike))),
    )


def bytes_at_moments(
    moments: Moments, sizes: Array, lasting: Array, last_work: Array, relayed: Array
) -> Array:
    """c, shape (moments, partitions), for several partitions side by side.

    `sizes` has each stage's bytes for the kinds in `KINDS`, shape (kinds, stages, partitions). `lasting` are the bytes
    that do not change within a step, and `last_work` each stage's workspace in W. `relayed` are gradients that pass through each stage: other actions
    have room for copies of them.
    """
    rows = moments.in_flight
    counts = rows.counts.reshape(len(rows.op), -1)
    moving = summed_bytes(counts, sizes.reshape(len(KINDS) * sizes.shape[1], -1))
    # A first backward has the workspace of any other, and all gradients count from its start on.
    made = sizes[MADE][rows.column]
    moving = moving + np.where((rows.op == FIRST)[:, None], made, 0)
    # No policy changes the workspace in W, nor these copies.
    in_w = (rows.op == W)[:, None]
    moving = moving + np.where(in_w, last_work[rows.column], relayed[rows.column])
    return np.maximum.reduceat(moving[moments.order], moments.begins, axis=0) + lasting
