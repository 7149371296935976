"""The frontiers (autopart/frontier.py) of all stages between two of N cuts, and the best point of each.

Stage [i, j] is [i, j'] with one more layer, the last in the graph's order, where j' is the cut without it:
it exists, because the layers ahead of j without their last one are closed under predecessors too. So
one frontier grows from another, N of them at a time.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.frontier import NO_CHOICE, Frontiers, Points
from autopart.graph import LayerGraph
from autopart.problem import Demands
from autopart.stage_load import Number

Array = npt.NDArray[Any]


class StagePoints(NamedTuple):
    """All points of all stages, those of a stage side by side."""

    stages: Array
    """Stage [i, j] as i N + j, rising."""
    first: Array
    """Where the points of each of `stages` begin."""
    of: Array
    """For each point the place of its stage among `stages`."""
    extra_time: Array
    freed_bytes: Array
    workspace_bytes: Array


class Best(NamedTuple):
    """Of every stage one point, as matrices of shape (N, N); 0 where there is no stage."""

    extra_time: Array
    freed_bytes: Array
    workspace_bytes: Array


def stage_points(graph: LayerGraph, demands: Demands, ahead: Number, nested: Number) -> StagePoints:
    """The frontier of every stage [i, j], where `nested` says that there is one."""
    grown, size = Frontiers(graph, demands), len(ahead)
    index = {row.tobytes(): at for at, row in enumerate(ahead)}
    last, without = _steps(ahead, nested, index)
    stages: list[int] = []
    found: list[Points] = []
    for i in range(size):
        own: dict[int, Points] = {i: NO_CHOICE}
        for j in np.flatnonzero(nested[i]).tolist():
            inside = ahead[j] & ~ahead[i]
            own[j] = grown.add(own[without[i, j]], last[i, j], inside)
            stages.append(i * size + j)
            found.append(own[j])
    lengths = np.array([len(points.extra_time) for points in found], dtype=np.int64)
    return StagePoints(
        stages=np.array(stages, dtype=np.int64),
        first=np.cumsum(lengths) - lengths,
        of=np.repeat(np.arange(len(lengths)), lengths),
        extra_time=np.concatenate([points.extra_time for points in found]),
        freed_bytes=np.concatenate([points.freed_bytes for points in found]),
        workspace_bytes=np.concatenate([points.workspace_bytes for points in found]),
    )


def _steps(
    ahead: Number, nested: Number, index: dict[bytes, int]
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """For each stage its last layer, and the cut that it ends at without that layer."""
    last: dict[tuple[int, int], int] = {}
    without: dict[tuple[int, int], int] = {}
    for i, j in np.argwhere(nested).tolist():
        at = int(np.flatnonzero(ahead[j] & ~ahead[i])[-1])
        smaller = ahead[j].copy()
        smaller[at] = False
        last[i, j], without[i, j] = at, index[smaller.tobytes()]
    return last, without


def best_points(
    points: StagePoints, kept: Number, workspace: Number, held: int, limit: int
) -> Best:
    """For every stage the point with the fewest extra seconds that fits into `limit` bytes; the one
    with the fewest bytes where none does.

    `kept` are the bytes [i, j] of a rank where nothing is recomputed, `workspace` the part of them that is
    workspace; `held` microbatches are in flight.
    """
    needed = np.ravel(kept)[points.stages][points.of]
    needed = needed - held * points.freed_bytes
    needed = needed + points.workspace_bytes - np.ravel(workspace)[points.stages][points.of]
    count = len(points.of)
    place = np.where(needed <= limit, np.arange(count), count)
    chosen = np.minimum.reduceat(place, points.first)
    least = np.minimum.reduceat(needed, points.first)
    first_least = np.where(needed == least[points.of], np.arange(count), count)
    chosen = np.where(chosen < count, chosen, np.minimum.reduceat(first_least, points.first))
    return Best(
        *(
            _matrix(points, column[chosen], kept.shape)
            for column in (points.extra_time, points.freed_bytes, points.workspace_bytes)
        )
    )


def _matrix(points: StagePoints, entries: Array, shape: tuple[int, ...]) -> Array:
    flat = np.zeros(shape[0] * shape[1], dtype=entries.dtype)
    flat[points.stages] = entries
    return flat.reshape(shape)
