"""The best stages over every order of a layer graph, by bisection over its downsets (solve.py,
(2))."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.downsets import Covers
from autopart.peers.balancers.one_order import ROUNDING, Balance, largest_sum
from autopart.records.layer_graph import LayerGraph, edges
from autopart.records.layouts import Partition
from autopart.solvers.fewest_ranks import Floats, Ints


class HeavyLayers(NamedTuple):
    """A graph, its layers with a weight, and the downsets over these.

    A layer without a weight can stand in the last stage that holds a layer ahead of it.
    """

    graph: LayerGraph
    layers: list[int]
    """Positions of the layers with a weight."""
    sizes: Ints
    """The number of layers in each downset; smaller downsets come first."""
    covers: Covers
    """The steps from downset to downset, sorted by target."""


def heavy_edges(graph: LayerGraph, heavy: Sequence[int]) -> list[tuple[int, int]]:
    """(u, w) for places in `heavy`: an edge, or a path over layers without a weight."""
    place = {layer: at for at, layer in enumerate(heavy)}
    ahead: list[set[int]] = [set() for _ in graph.layers]
    for u, w in sorted(edges(graph), key=lambda edge: edge[1]):
        ahead[w] |= {place[u]} if u in place else ahead[u]
    return [(u, place[w]) for w in heavy for u in sorted(ahead[w])]


def _with_all_layers(heavy: HeavyLayers, stages: Sequence[Sequence[int]]) -> list[list[int]]:
    """Stages over places in `heavy.layers`, as stages over all layers."""
    home = {heavy.layers[at]: stage for stage, places in enumerate(stages) for at in places}
    sources: dict[int, list[int]] = {}
    for u, w in edges(heavy.graph):
        sources.setdefault(w, []).append(u)
    full: list[list[int]] = [[] for _ in stages]
    for layer in range(len(heavy.graph.layers)):
        if layer not in home:
            home[layer] = max((home[u] for u in sources.get(layer, ())), default=0)
        full[home[layer]].append(layer)
    return full


def over_all_orders(
    heavy: HeavyLayers, weights: Sequence[float], num_stages: int, best: Balance
) -> Balance:
    """The best stages over all orders, no worse than the best known."""
    failed = best.lower_bound * (1 - ROUNDING)
    while failed < best.bottleneck * (1 - ROUNDING):
        # Just below the best known comes first: where that is the optimum, one refusal proves it.
        for limit in (best.bottleneck * (1 - ROUNDING), (failed + best.bottleneck) / 2):
            stages = _fill(heavy, weights, limit, num_stages)
            if stages is None:
                failed = limit
                break
            bottleneck = largest_sum(weights, stages)
            best = Balance(bottleneck, best.lower_bound, tuple(itertools.chain(*stages)), stages)
    return best._replace(lower_bound=best.bottleneck)


def _fill(
    heavy: HeavyLayers, weights: Sequence[float], limit: float, num_stages: int
) -> Partition | None:
    """Stages within `limit`, or None where no order has so few."""
    if max(weights) > limit:
        return None
    covers = heavy.covers
    times = np.array([weights[layer] for layer in heavy.layers])[covers.node]
    full, used = np.zeros(len(heavy.sizes), dtype=np.int64), np.zeros(len(heavy.sizes))
    # F(D) in (2) for all downsets with 1, 2, … layers.
    for begin, end in _levels(heavy):
        source, target, time = (
            column[begin:end] for column in (covers.source, covers.target, times)
        )
        # Step 1: each cover adds its layer to the last stage, or to a new one.
        opens = used[source] + time > limit
        filled, total = full[source] + opens, np.where(opens, 0.0, used[source]) + time
        # Step 2: for each downset the fewest full stages, then the smallest sum among these.
        firsts = np.flatnonzero(np.diff(target, prepend=-1))
        full[target[firsts]] = np.minimum.reduceat(filled, firsts)
        total[filled > full[target]] = np.inf
        used[target[firsts]] = np.minimum.reduceat(total, firsts)
    if full[-1] >= num_stages:
        return None
    stages = _with_all_layers(heavy, _follow(covers, times, limit, full, used))
    while len(stages) < num_stages:
        _split(stages)
    return tuple(map(tuple, stages))


def _levels(heavy: HeavyLayers) -> list[tuple[int, int]]:
    """Where the covers to downsets with 1, 2, … layers begin and end."""
    sizes = heavy.sizes[heavy.covers.target]
    bounds = np.searchsorted(sizes, np.arange(1, int(heavy.sizes[-1]) + 2))
    return list(itertools.pairwise(bounds.tolist()))


def _follow(
    covers: Covers, times: Floats, limit: float, full: Ints, used: Floats
) -> list[list[int]]:
    """The stages by which `full` and `used` came to the set of all layers."""
    stages: list[list[int]] = [[]]
    at = len(full) - 1
    while at:
        begin, end = np.searchsorted(covers.target, [at, at + 1])
        # The cover that gives exactly this downset's entry.
        for cover in range(begin, end):
            before = int(covers.source[cover])
            opens = bool(used[before] + times[cover] > limit)
            total = (0.0 if opens else used[before]) + times[cover]
            if full[before] + opens == full[at] and total == used[at]:
                stages[0].append(int(covers.node[cover]))
                if opens:
                    stages.insert(0, [])
                at = before
                break
    return [sorted(stage) for stage in stages]


def _split(stages: list[list[int]]) -> None:
    """Split the stage with the most layers in two; positions stand in a topological order."""
    at = max(range(len(stages)), key=lambda stage: len(stages[stage]))
    half = len(stages[at]) // 2
    stages[at : at + 1] = [stages[at][:half], stages[at][half:]]
