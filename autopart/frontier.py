"""Which layers of a stage are recomputed: the exact Pareto frontier of seconds and bytes.

Symbols   R        the recomputed layers of a stage
          x_l      seconds that recomputing layer l adds to its backward
          g_l      bytes per microbatch that recomputing l frees: its own stash, less what of it stays, less
                   each value that it takes, that the stage makes and that no backward needs: it is now kept
          w_l, u_l workspace of l where it is kept, and where it is recomputed: then the stash that it
                   frees comes back while its backward runs, u_l = w_l + that stash

    extra(R) = sum of x_l     freed(R) = sum of g_l     workspace(R) = max(u_l in R, w_l outside R)

A point (extra, freed, workspace) is dominated by one that is no worse in all three. The frontier of a
stage is built layer by layer (Nemhauser and Ullmann, Management Science 15, 1969): each point once with
the layer kept and once with it recomputed, and dominated points dropped. That is exact: adding the same
layer in the same way to two points keeps the order of all three numbers, so whatever continues a dropped
point is dominated by the same continuation of the point that dropped it.

Of identical layers only how many are recomputed matters: other choices of as many have the same point
and are dropped, so that n layers of c classes have at most prod (n_c + 1) points. Layers that all
differ can have 2^n: past `MOST_POINTS` of a stage an even selection of the frontier stays, which holds
both its ends. O(points log points) for each layer that is added.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.graph import Layer, LayerGraph, positions
from autopart.problem import CLASSIC, Demands

Array = npt.NDArray[Any]

MOST_POINTS = 512
"""Points of one stage that are followed: far more than identical layers ever have."""


class Points(NamedTuple):
    """Choices of one stage, the one with the fewest extra seconds first."""

    extra_time: Array
    freed_bytes: Array
    """Of the stash, for each microbatch in flight."""
    workspace_bytes: Array
    chosen: Array | None
    """The recomputed layers as the bits of a whole number: layer at position p is bit p. None where only
    the numbers are asked for."""


class Options(NamedTuple):
    """What may be done with each layer."""

    keep: tuple[bool, ...]
    recompute: tuple[bool, ...]


NO_CHOICE = Points(
    np.zeros(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), chosen=None
)
"""The frontier of no layers."""
_LEAST = np.iinfo(np.int64).min


def options(graph: LayerGraph, demands: Demands) -> Options:
    """What the demands leave open for each layer of a graph."""
    asked, kept = set(demands.recompute_layers), set(demands.keep_layers)
    able = [la.recompute is not None for la in graph.layers]
    names = [la.name for la in graph.layers]
    must = [
        can and (name in asked or (demands.recompute == "always" and name not in kept))
        for name, can in zip(names, able, strict=True)
    ]
    may = [
        can and (own or (demands.recompute == "auto" and name not in kept))
        for name, can, own in zip(names, able, must, strict=True)
    ]
    return Options(keep=tuple(not own for own in must), recompute=tuple(may))


class Frontiers:
    """The frontiers of the stages of one graph, under one user's demands."""

    def __init__(self, graph: LayerGraph, demands: Demands) -> None:
        self.layers, self.options = graph.layers, options(graph, demands)
        place = positions(graph)
        self._taken: list[list[tuple[int, int]]] = [[] for _ in graph.layers]
        for value in graph.values:
            for name in set(value.consumers) if not value.kept_by else ():
                self._taken[place[name]].append((place[value.producer], value.bytes))

    def freed(self, at: int, is_inside: Sequence[bool] | Array) -> int:
        """Bytes per microbatch that recomputing the layer at position `at` frees in a stage; below
        0 where what it takes is larger than its own stash."""
        newly_kept = sum(size for producer, size in self._taken[at] if is_inside[producer])
        return _own_stash(self.layers[at]) - newly_kept

    def add(self, points: Points, at: int, is_inside: Sequence[bool] | Array) -> Points:
        """The frontier with one more layer; `is_inside` says of each layer whether it lies in the stage."""
        layer = self.layers[at]
        ways: list[Points] = []
        if self.options.keep[at]:
            kept = np.maximum(points.workspace_bytes, layer.workspace_bytes)
            ways.append(points._replace(workspace_bytes=kept))
        freed = self.freed(at, is_inside) if self.options.recompute[at] else 0
        if self.options.recompute[at] and (freed > 0 or not ways):
            ways.append(_recomputed(points, layer, at, freed))
        return ways[0] if len(ways) == 1 else _pareto(_joined(ways))

    def frontier(self, members: Iterable[int]) -> Points:
        """The frontier of a stage with the layers at `members`."""
        inside = np.zeros(len(self.layers), dtype=bool)
        inside[list(members)] = True
        points = NO_CHOICE._replace(chosen=np.zeros(1, dtype=object))
        for at in np.flatnonzero(inside):
            points = self.add(points, int(at), inside)
        return points


def only_choice(graph: LayerGraph, members: Iterable[int], chosen: Collection[int]) -> Points:
    """The one point of a stage in which exactly the layers at `chosen` are recomputed."""
    names = tuple(graph.layers[at].name for at in chosen)
    return Frontiers(graph, Demands(recompute_layers=names)).frontier(members)


def freeable_bytes(graph: LayerGraph, demands: Demands) -> int:
    """Of the stash inside the layers, for one microbatch, what the demands let recomputation free."""
    may = options(graph, demands).recompute
    return sum(_own_stash(la) for la, own in zip(graph.layers, may, strict=True) if own)


def leaves_choice(demands: Demands) -> bool:
    """Whether anything may be recomputed at all."""
    return demands.recompute != "never" or bool(demands.recompute_layers)


def can_recompute(schedule: str) -> bool:
    """Whether layers are recomputed under a schedule: those with one stage a rank and whole backwards.
    A split backward brings the stash back at I, and holds it until W; where a rank has several stages, they
    share what is left beside their state."""
    return schedule in CLASSIC


def _own_stash(layer: Layer) -> int:
    """What the layer keeps inside itself only where it is not recomputed."""
    return layer.stash_bytes - (layer.recompute.stash_bytes if layer.recompute else 0)


def recomputed_workspace(layer: Layer) -> int:
    """Bytes of a layer's transient peak where its stash comes back in its backward."""
    return layer.workspace_bytes + _own_stash(layer)


def _recomputed(points: Points, layer: Layer, at: int, freed: int) -> Points:
    assert layer.recompute is not None
    return Points(
        points.extra_time + layer.recompute.extra_time,
        points.freed_bytes + freed,
        np.maximum(points.workspace_bytes, recomputed_workspace(layer)),
        None if points.chosen is None else points.chosen | (1 << at),
    )


def _joined(ways: Sequence[Points]) -> Points:
    chosen = [points.chosen for points in ways if points.chosen is not None]
    return Points(
        np.concatenate([points.extra_time for points in ways]),
        np.concatenate([points.freed_bytes for points in ways]),
        np.concatenate([points.workspace_bytes for points in ways]),
        np.concatenate(chosen) if chosen else None,
    )


def _at(points: Points, places: Array) -> Points:
    return Points(
        points.extra_time[places],
        points.freed_bytes[places],
        points.workspace_bytes[places],
        None if points.chosen is None else points.chosen[places],
    )


def _pareto(points: Points) -> Points:
    """Without dominated points, and with no more than `MOST_POINTS`."""
    order = np.lexsort((points.workspace_bytes, -points.freed_bytes, points.extra_time))
    points = _at(points, order)
    room, freed = points.workspace_bytes, points.freed_bytes
    alive = np.zeros(len(room), dtype=bool)
    for most in sorted(set(room.tolist())):
        ahead = np.maximum.accumulate(np.where(room <= most, freed, _LEAST))
        better = room == most
        better[1:] &= freed[1:] > ahead[:-1]
        alive |= better
    left = np.flatnonzero(alive)
    if len(left) > MOST_POINTS:
        left = _even(left, freed)
    return _at(points, left)


def _even(left: Array, freed: Array) -> Array:
    """`MOST_POINTS` of the points `left`, spread over the bytes that they free; still by extra time."""
    by_bytes = left[np.argsort(freed[left], kind="stable")]
    places = np.linspace(0, len(left) - 1, MOST_POINTS).astype(int)
    return np.sort(by_bytes[places])
