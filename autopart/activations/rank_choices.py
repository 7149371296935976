"""The choice of policies for all stages of a rank together.

Symbols   s          a stage on the rank
          g          a moment: what the rank's order keeps while one action runs (autopart/schedules/in_flight.py)
          n[g, s]    microbatches of s that keep their stash at g
          x, f, u    seconds, freed bytes and workspace of one point on the frontier of s
                     (autopart/activations/frontier.py)
          h          stash bytes of the point that are on the host, for each microbatch
          o, q       optimizer state of s that is off the device, and that is on the host
          c[g]       bytes at g where all layers keep their stash, without the workspace of the running action

A choice takes one point for each stage, and a place for its optimizer state. It fits exactly if

    c[g] - Σ (n[g, s] f[s] + o[s]) + u of the stage that runs at g  <=  the rank's bytes     for each moment g     (1)
    Σ (n[g, s] h[s] + q[s])  <=  the rank's share of host memory                             for each moment g     (2)

Here u is the workspace in I where I runs at g. Among the choices that fit, the rule takes the one with the fewest
seconds Σ x[s], then the one that changes the fewest layers, then the first. Seconds of a longer update are shared out
over the microbatches. Where none fits, it takes the choice with the fewest bytes at the fullest moment, (2) kept where
it can be.

The link to the host is one for all stages of the rank. A rank runs one action at a time, and each action waits for its
own copies. So no two stages copy at once, and x needs no other stage.

All choices are made stage by stage. One is dropped where the bytes exceed the limit even if all later stages take their
least at each moment. It is also dropped where its seconds exceed those of a choice that fits. Both drop no better
choice, so the rule is exact up to `MOST_CHOICES`. Beyond that only the fastest ones are followed.

**Fastest steps.** Which stage of a rank should be slower depends on the other ranks. A step only grows with the seconds
of each stage's forward, backward and update. So for one partition the fastest step is among the *least vectors*: these
seconds of choices that fit, which no other such choice beats everywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.moments import Moments
from autopart.cost.stage_totals import Array
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
    """Seconds added to each microbatch in forward and backward, on the profile's device."""
    forward_wait: Array
    """Seconds in `extra_time` that the forward waits for copies to the host."""
    update_time: Array
    """Seconds that copies of optimizer state add to the update, shared out over the microbatches, on that device."""
    freed_bytes: Array
    workspace_bytes: Array
    input_grad_workspace_bytes: Array
    host_bytes: Array
    state_off_device: Array
    """Optimizer state that is not on the device, in bytes."""
    state_on_host: Array
    changed_layers: Array


SECONDS = ("forward", "backward", "update")
"""The seconds of a stage that count apart, in the order of `seconds_apart`."""


class RankBytes(NamedTuple):
    """What a rank has beside its stages' choices, and its limits."""

    beside: Array
    """c, shape (moments,)."""
    limit: int
    """Bytes on the device for everything but the reserve."""
    on_host: int = 0
    """Optimizer state that is on the host under every choice."""
    host_limit: int | None = None
    """The rank's share of host memory; None without a limit."""


def best_choice(
    moments: Moments, rank: RankBytes, stages: Sequence[StagePoints]
) -> tuple[int, ...]:
    """The place of each stage's point by the rule."""
    lacking, sizes = _lacking(moments, rank), _changed_bytes(moments, rank, stages)
    # Step 1: a first choice that fits, from few points of each stage.
    few = [np.unique(np.linspace(0, len(s) - 1, FEW_POINTS).astype(int)) for s in sizes]
    some = [StagePoints(*(c[at] for c in own)) for own, at in zip(stages, few, strict=True)]
    known = _fastest(lacking, [s[at] for s, at in zip(sizes, few, strict=True)], some)
    seconds = np.inf if known is None else known[1]
    # Step 2: the best of all choices that take no longer.
    found = _fastest(lacking, sizes, stages, seconds)
    if found is not None:
        return found[0]
    if known is not None:
        return tuple(int(own[at]) for own, at in zip(few, known[0], strict=True))
    return _leanest(lacking, sizes, len(rank.beside))


def leanest_choice(
    moments: Moments, rank: RankBytes, stages: Sequence[StagePoints]
) -> tuple[int, ...]:
    """The place of each stage's point with the fewest bytes at the fullest moment, within the share of the host."""
    sizes = _changed_bytes(moments, rank, stages)
    return _leanest(_lacking(moments, rank), sizes, len(rank.beside))


class LeastVectors(NamedTuple):
    """Seconds that policies may add to the stages of one rank, where memory allows it."""

    seconds: Array
    """Shape (vectors, `SECONDS`, stages)."""
    places: npt.NDArray[np.int64] | None
    """Each vector's points, shape (vectors, stages); None where a vector stands for several choices."""


def seconds_apart(points: StagePoints) -> Array:
    """The seconds that count apart, shape (points, `SECONDS`)."""
    backward = points.extra_time - points.forward_wait
    return np.column_stack([points.forward_wait, backward, points.update_time])


def least_vectors(
    moments: Moments, rank: RankBytes, stages: Sequence[StagePoints]
) -> LeastVectors | None:
    """The least vectors of a rank; None where no choice fits.

    Where the choices are too many, one vector has the least that fits for each stage alone.
    """
    lacking, sizes = _lacking(moments, rank), _changed_bytes(moments, rank, stages)
    least = [own.min(axis=0) for own in sizes]
    apart = [seconds_apart(own) for own in stages]
    alone: list[Array] = []
    for at, own in enumerate(sizes):
        others = lacking + sum(one for other, one in enumerate(least) if other != at)
        able = (others + own <= 0).all(axis=1)
        if not able.any():
            return None
        alone.append(apart[at][able].min(axis=0))
    made = _all_choices(lacking, sizes)
    if made is None:
        return LeastVectors(np.stack(alone, axis=1)[None], None)
    if not len(made):
        return None
    vectors = np.stack([own[made[:, at]] for at, own in enumerate(apart)], axis=2)
    changed = np.zeros(len(made), dtype=np.int64)
    for at, own in enumerate(stages):
        changed += own.changed_layers[made[:, at]]
    order = np.lexsort([changed, vectors.sum(axis=(1, 2))])
    kept = order[_undominated(vectors[order].reshape(len(order), -1))]
    return LeastVectors(vectors[kept], made[kept])


def _lacking(moments: Moments, rank: RankBytes) -> Array:
    """What the rank lacks where no layer is changed, in the rows of (1) and then of (2); a choice fits at 0 or below."""
    on_device = rank.beside - rank.limit
    if rank.host_limit is None:
        return on_device
    on_host = np.full(len(moments.fullest), rank.on_host - rank.host_limit)
    return np.concatenate([on_device, on_host])


def _changed_bytes(moments: Moments, rank: RankBytes, stages: Sequence[StagePoints]) -> list[Array]:
    """What each point of each stage adds to these rows, shape (points, rows) for each stage."""
    found: list[Array] = []
    for stage, points in enumerate(stages):
        rows = points.freed_bytes[:, None] * -moments.counts[None, :, stage]
        rows = rows + points.workspace_bytes[:, None] * moments.runs_whole[None, :, stage]
        half = points.input_grad_workspace_bytes[:, None]
        rows = rows + half * moments.runs_input_grad[None, :, stage]
        rows = rows - points.state_off_device[:, None]
        if rank.host_limit is not None:
            on_host = points.host_bytes[:, None] * moments.fullest[None, :, stage]
            rows = np.hstack([rows, on_host + points.state_on_host[:, None]])
        found.append(rows)
    return found


def _fastest(
    lacking: Array,
    sizes: Sequence[Array],
    stages: Sequence[StagePoints],
    most_seconds: float = np.inf,
) -> tuple[tuple[int, ...], float] | None:
    """The fastest choice that fits and takes at most so many seconds, and its seconds."""
    later = _least_behind(sizes)
    places, now = np.zeros((1, 0), dtype=np.int64), lacking[None, :]
    seconds, changed = np.zeros(1), np.zeros(1, dtype=np.int64)
    for at, (own, points) in enumerate(zip(sizes, stages, strict=True)):
        check_time()
        longer = points.extra_time + points.update_time
        kept: list[tuple[Array, Array]] = []
        # Step 1: each choice goes on with each point, some choices at a time.
        for some in np.array_split(
            np.arange(len(seconds)), 1 + len(seconds) * len(own) * own.shape[1] // 4_000_000
        ):
            able = (now[some][:, None, :] + own[None] + later[at + 1] <= 0).all(axis=2)
            able &= seconds[some][:, None] + longer <= most_seconds * (1 + 1e-12)
            which, point = np.nonzero(able)
            kept.append((some[which], point))
        which, point = (np.concatenate(each) for each in zip(*kept, strict=True))
        if not len(which):
            return None
        # Step 2: the fastest come first; among equally fast ones those that change the fewest layers.
        seconds, changed = (
            seconds[which] + longer[point],
            changed[which] + points.changed_layers[point],
        )
        order = np.lexsort([changed, seconds])[:MOST_CHOICES]
        if at == len(sizes) - 1:
            order = order[:1]
        places = np.column_stack([places[which[order]], point[order]])
        now = now[which[order]] + own[point[order]]
        seconds, changed = seconds[order], changed[order]
    return tuple(int(place) for place in places[0]), float(seconds[0])


def _all_choices(lacking: Array, sizes: Sequence[Array]) -> npt.NDArray[np.int64] | None:
    """The points of each choice that fits; None where more than `MOST_CHOICES` may fit."""
    later = _least_behind(sizes)
    places, now = np.zeros((1, 0), dtype=np.int64), lacking[None, :]
    for at, own in enumerate(sizes):
        check_time()
        if len(now) * len(own) > MOST_CHOICES:
            return None
        able = (now[:, None, :] + own[None] + later[at + 1] <= 0).all(axis=2)
        which, point = np.nonzero(able)
        places = np.column_stack([places[which], point])
        now = now[which] + own[point]
    return places


def _leanest(lacking: Array, sizes: Sequence[Array], on_device: int) -> tuple[int, ...]:
    """The choice with the fewest bytes at the fullest moment; past `MOST_CHOICES` stage by stage.

    The first `on_device` rows are those of (1). The others are kept where any choice keeps them.
    """
    places, now = np.zeros((1, 0), dtype=np.int64), lacking[None, :]
    later = _least_behind(sizes)
    for at, own in enumerate(sizes):
        check_time()
        which, point = np.divmod(np.arange(len(now) * len(own)), len(own))
        least = [row + own + later[at + 1] for row in now]
        most = np.concatenate([rows[:, :on_device].max(axis=1) for rows in least])
        if on_device < len(lacking):
            over = np.concatenate([rows[:, on_device:].max(axis=1) for rows in least]) > 0
            order = np.lexsort([most, over])[: MOST_CHOICES // 100]
        else:
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
    # A column that is the same everywhere tells no rows apart.
    vectors = vectors[:, (vectors != vectors[:1]).any(axis=0)]
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
