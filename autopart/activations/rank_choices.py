"""The choice of policies for all stages of a rank together.

Symbols   s          a stage on the rank
          g          a moment: what the rank's order keeps while one action runs (autopart/schedules/in_flight.py)
          n[g, s]    microbatches of s that keep their stash at g
          x, f, u    seconds, freed bytes and workspace of one point on the frontier of s
                     (autopart/activations/frontier.py)
          c[g]       bytes at g where all layers keep their stash, without the workspace of the running action

A choice takes one point for each stage. It fits exactly if

    c[g] - Σ n[g, s] f[s] + u of the stage that runs at g  <=  the rank's bytes       for each moment g       (1)

Here u is the workspace in I where I runs at g. Among the choices that fit, the rule takes the one with the fewest
seconds Σ x[s], then the one that changes the fewest layers, then the first. Where none fits, it takes the choice with the
fewest bytes at the fullest moment.

All choices are made stage by stage. One is dropped where the bytes exceed the limit even if all later stages take their
least at each moment. It is also dropped where its seconds exceed those of a choice that fits. Both drop no better
choice, so the rule is exact up to `MOST_CHOICES`. Beyond that only the fastest ones are followed.

**Fastest steps.** Which stage of a rank should be slower depends on the other ranks. A step only grows with each x. So for
one partition the fastest step is among the *least vectors*: the seconds (x of each stage) of choices that fit, which no
other such choice beats on every stage.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.cost.stage_totals import Array
from autopart.records.peak_bytes import summed_bytes
from autopart.schedules.encoding import I, W
from autopart.schedules.in_flight import KINDS, STASH, InFlight
from autopart.stopping.time_limit import check_time

MOST_CHOICES = 200_000
"""Choices that are compared at once."""

FEW_POINTS = 8
"""Points of each stage from which a first choice that fits is made."""

BLOCK = 256
"""Vectors that are compared at once with those that stay."""


class StagePoints(NamedTuple):
    """The points that one stage may take, arrays with shape (points,)."""

    extra_time: Array
    """Seconds added to each microbatch, on the profile's device."""
    freed_bytes: Array
    workspace_bytes: Array
    input_grad_workspace_bytes: Array
    changed_layers: Array


class Moments(NamedTuple):
    """The moments of one rank, those with equal counts of stash and equal workspace together."""

    in_flight: InFlight
    counts: npt.NDArray[np.int64]
    """n, shape (moments, stages)."""
    runs_whole: npt.NDArray[np.bool_]
    """Whether a stage runs F or B, shape (moments, stages)."""
    runs_input_grad: npt.NDArray[np.bool_]
    """Whether a stage runs I, shape (moments, stages)."""
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
    return Moments(
        in_flight,
        counts=unlike[:, :stages],
        runs_whole=runs & (unlike[:, stages + 1, None] == 0),
        runs_input_grad=runs & (unlike[:, stages + 1, None] == 1),
        order=order,
        begins=np.searchsorted(moment[order], np.arange(len(unlike))),
    )


def bytes_at_moments(moments: Moments, sizes: Array, lasting: Array, last_work: Array) -> Array:
    """c, shape (moments, partitions), for several partitions side by side.

    `sizes` has each stage's bytes for the kinds in `KINDS`, shape (kinds, stages, partitions). `lasting` are the bytes
    that do not change within a step, and `last_work` each stage's workspace in W.
    """
    rows = moments.in_flight
    counts = rows.counts.reshape(len(rows.op), -1)
    moving = summed_bytes(counts, sizes.reshape(len(KINDS) * sizes.shape[1], -1))
    # No policy changes the workspace in W.
    moving = moving + np.where((rows.op == W)[:, None], last_work[rows.column], 0)
    return np.maximum.reduceat(moving[moments.order], moments.begins, axis=0) + lasting


def best_choice(
    moments: Moments, beside: Array, stages: Sequence[StagePoints], limit: int
) -> tuple[int, ...]:
    """The place of each stage's point by the rule; `beside` is c, shape (moments,)."""
    sizes = [_changed_bytes(moments, at, own) for at, own in enumerate(stages)]
    # Step 1: a first choice that fits, from few points of each stage.
    few = [np.unique(np.linspace(0, len(s) - 1, FEW_POINTS).astype(int)) for s in sizes]
    some = [StagePoints(*(c[at] for c in own)) for own, at in zip(stages, few, strict=True)]
    known = _fastest(beside, [s[at] for s, at in zip(sizes, few, strict=True)], some, limit)
    seconds = np.inf if known is None else known[1]
    # Step 2: the best of all choices that take no longer.
    found = _fastest(beside, sizes, stages, limit, seconds)
    if found is not None:
        return found[0]
    if known is not None:
        return tuple(int(own[at]) for own, at in zip(few, known[0], strict=True))
    return _leanest(beside, sizes)


def leanest_choice(
    moments: Moments, beside: Array, stages: Sequence[StagePoints]
) -> tuple[int, ...]:
    """The place of each stage's point with the fewest bytes at the fullest moment."""
    return _leanest(beside, [_changed_bytes(moments, at, own) for at, own in enumerate(stages)])


class LeastVectors(NamedTuple):
    """Seconds that policies may add to the stages of one rank, where memory allows it."""

    seconds: Array
    """Shape (vectors, stages)."""
    places: npt.NDArray[np.int64] | None
    """Each vector's points, shape (vectors, stages); None where a vector stands for several choices."""


def least_vectors(
    moments: Moments, beside: Array, stages: Sequence[StagePoints], limit: int
) -> LeastVectors | None:
    """The least vectors of a rank; None where no choice fits.

    Where the choices are too many, one vector has the least that fits for each stage alone.
    """
    sizes = [_changed_bytes(moments, at, own) for at, own in enumerate(stages)]
    least = [own.min(axis=0) for own in sizes]
    alone: list[float] = []
    for at, (own, points) in enumerate(zip(sizes, stages, strict=True)):
        others = beside + sum(one for other, one in enumerate(least) if other != at)
        able = (others + own <= limit).all(axis=1)
        if not able.any():
            return None
        alone.append(float(points.extra_time[able].min()))
    made = _all_choices(beside, sizes, stages, limit)
    if made is None:
        return LeastVectors(np.array([alone]), None)
    places, _ = made
    if not len(places):
        return None
    vectors = np.column_stack([own.extra_time[places[:, at]] for at, own in enumerate(stages)])
    changed = np.zeros(len(places), dtype=np.int64)
    for at, own in enumerate(stages):
        changed += own.changed_layers[places[:, at]]
    order = np.lexsort([changed, vectors.sum(axis=1)])
    kept = order[_undominated(vectors[order])]
    return LeastVectors(vectors[kept], places[kept])


def _changed_bytes(moments: Moments, stage: int, points: StagePoints) -> Array:
    """What each point of a stage adds to the bytes at each moment, shape (points, moments)."""
    own = (
        points.freed_bytes[:, None] * -moments.counts[None, :, stage],
        points.workspace_bytes[:, None] * moments.runs_whole[None, :, stage],
        points.input_grad_workspace_bytes[:, None] * moments.runs_input_grad[None, :, stage],
    )
    return sum(own)  # pyright: ignore


def _fastest(
    beside: Array,
    sizes: Sequence[Array],
    stages: Sequence[StagePoints],
    limit: int,
    most_seconds: float = np.inf,
) -> tuple[tuple[int, ...], float] | None:
    """The fastest choice that fits and takes at most so many seconds, and its seconds."""
    later = _least_behind(sizes)
    places, now = np.zeros((1, 0), dtype=np.int64), beside[None, :]
    seconds, changed = np.zeros(1), np.zeros(1, dtype=np.int64)
    for at, (own, points) in enumerate(zip(sizes, stages, strict=True)):
        check_time()
        kept: list[tuple[Array, Array]] = []
        # Step 1: each choice goes on with each point, some choices at a time.
        for some in np.array_split(
            np.arange(len(seconds)), 1 + len(seconds) * len(own) * own.shape[1] // 4_000_000
        ):
            able = (now[some][:, None, :] + own[None] + later[at + 1] <= limit).all(axis=2)
            able &= seconds[some][:, None] + points.extra_time <= most_seconds * (1 + 1e-12)
            which, point = np.nonzero(able)
            kept.append((some[which], point))
        which, point = (np.concatenate(each) for each in zip(*kept, strict=True))
        if not len(which):
            return None
        # Step 2: the fastest come first; among equally fast ones those that change the fewest layers.
        seconds, changed = (
            seconds[which] + points.extra_time[point],
            changed[which] + points.changed_layers[point],
        )
        order = np.lexsort([changed, seconds])[:MOST_CHOICES]
        if at == len(sizes) - 1:
            order = order[:1]
        places = np.column_stack([places[which[order]], point[order]])
        now = now[which[order]] + own[point[order]]
        seconds, changed = seconds[order], changed[order]
    return tuple(int(place) for place in places[0]), float(seconds[0])


def _all_choices(
    beside: Array, sizes: Sequence[Array], stages: Sequence[StagePoints], limit: int
) -> tuple[npt.NDArray[np.int64], Array] | None:
    """The points of each choice that fits, and its bytes; None where more than `MOST_CHOICES` may fit."""
    later = _least_behind(sizes)
    places, now = np.zeros((1, 0), dtype=np.int64), beside[None, :]
    for at, own in enumerate(sizes):
        check_time()
        if len(now) * len(own) > MOST_CHOICES:
            return None
        able = (now[:, None, :] + own[None] + later[at + 1] <= limit).all(axis=2)
        which, point = np.nonzero(able)
        places = np.column_stack([places[which], point])
        now = now[which] + own[point]
    return places, now


def _leanest(beside: Array, sizes: Sequence[Array]) -> tuple[int, ...]:
    """The choice with the fewest bytes at the fullest moment; past `MOST_CHOICES` stage by stage."""
    places, now = np.zeros((1, 0), dtype=np.int64), beside[None, :]
    later = _least_behind(sizes)
    for at, own in enumerate(sizes):
        check_time()
        which, point = np.divmod(np.arange(len(now) * len(own)), len(own))
        most = np.concatenate([(row + own + later[at + 1]).max(axis=1) for row in now])
        order = np.argsort(most, kind="stable")[: MOST_CHOICES // 100]
        if at == len(sizes) - 1:
            order = order[:1]
        places = np.column_stack([places[which[order]], point[order]])
        now = now[which[order]] + own[point[order]]
    return tuple(int(place) for place in places[0])


def _least_behind(sizes: Sequence[Array]) -> list[Array]:
    """For each stage the least bytes that it and all later ones add at each moment; 0 behind the last."""
    behind = [np.zeros(sizes[0].shape[1], dtype=np.int64)]
    for own in reversed(sizes):
        behind.append(behind[-1] + own.min(axis=0))
    return behind[::-1]


def _undominated(vectors: Array) -> npt.NDArray[np.int64]:
    """The rows that no other row is at most as large as everywhere; rows stand in the order of their sums."""
    left = np.zeros(0, dtype=np.int64)
    for start in range(0, len(vectors), BLOCK):
        check_time()
        block = np.arange(start, min(start + BLOCK, len(vectors)))
        if len(left):
            beaten = (vectors[left][:, None] <= vectors[block][None]).all(axis=2)
            block = block[~beaten.any(axis=0)]
        among = np.triu((vectors[block][:, None] <= vectors[block][None]).all(axis=2), 1)
        left = np.concatenate([left, block[~among.any(axis=0)]])
    return left
