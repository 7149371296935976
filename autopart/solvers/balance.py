"""Stages of balanced layer times, over every order of a layer graph: what balancers look for.

Symbols   t[l]     what layer l weighs, for example its forward and backward time
          k        stages;  T  the sum of all t

The largest sum of a stage is to be smallest. Sends and memory count for nothing, so that a stage
can always be split without harm: k stages are never worse than fewer.

    bottleneck >= max( T / k, the largest t )                                                    (1)

For a sequence of layers the probe (solvers/probe.py) is exact. A graph has many sequences; for a
bottleneck, the fewest stages over all of them follow from its down-sets D, layer by layer:

    F(D) = the smallest (full stages, load of the last stage), in this order, over the layers l that
           may come last in D, of F(D - l) with l added: to the last stage, or to a new one where l
           does not fit                                                                          (2)

Fewer full stages are never worse, since a new stage can be opened at any time, nor is less load in
the last one: so (2) loses nothing. Layers that weigh nothing are left out of it, the edges over them
kept: each stands in the last stage that holds a layer ahead of it. It is O(down-sets x width) a bottleneck, and exact by bisection up
to a relative 1e-12 with the best of some orders as the start. With more than `MOST_STATES` down-sets
that best is the answer, and (1) is what is proven for the orders that were not cut.
"""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import numpy.typing as npt

from autopart.errors import InfeasibleError
from autopart.graph import LayerGraph, as_networkx, edges, is_chain
from autopart.solvers import probe
from autopart.stage_load import Partition
from autopart.states import Growth, grow

Array = npt.NDArray[Any]

RANDOM_ORDERS = 32

ROUNDING = 1e-12
"""Relative error of a sum of times, within which a bottleneck meets its bound."""

MOST_STATES = 100_000

STARTS = 8
"""Orders whose stages are evened out."""

MOST_MOVES = 1_000


class Balance(NamedTuple):
    """Stages, and how good they are."""

    bottleneck: float
    lower_bound: float
    """No stages of any order are better; equal to `bottleneck` where that is proven optimal."""
    order: tuple[int, ...]
    """The order in which the layers were cut: no cut of this one is better, in any case."""
    stages: Partition


def solve(
    graph: LayerGraph,
    weights: Sequence[float],
    num_stages: int,
    orders: Iterable[Sequence[int]] = (),
) -> Balance:
    """Divide the layers into `num_stages` stages whose largest sum of `weights` is smallest; each of
    `orders` (positions of the layers, every edge forward) is cut besides some of our own.

    Raises InfeasibleError where there are more stages than layers.
    """
    if num_stages > len(weights):
        raise InfeasibleError(
            f"{num_stages} stages cannot be made of {len(weights)} layers; ask for at most "
            f"{len(weights)}"
        )
    bound = max(sum(weights) / num_stages, max(weights))
    found: list[Balance] = []
    for order in (*orders, *_orders(graph)):
        found.append(_cut(weights, order, num_stages, bound))
        if found[-1].bottleneck <= bound * (1 + ROUNDING):
            return found[-1]._replace(lower_bound=found[-1].bottleneck)
    best = min(found, key=lambda balance: balance.bottleneck)
    if is_chain(graph):
        return best._replace(lower_bound=best.bottleneck)
    heavy = [layer for layer, weight in enumerate(weights) if weight > 0]
    growth = grow(len(heavy), _heavy_edges(graph, heavy), MOST_STATES)
    if growth is None:
        starts = sorted(found, key=lambda balance: balance.bottleneck)[:STARTS]
        evened = [_even_out(graph, weights, num_stages, start) for start in starts]
        return min(evened, key=lambda balance: balance.bottleneck)
    search = _Heavy(graph, heavy, growth)
    return _over_all(search, weights, num_stages, best)


def _orders(graph: LayerGraph) -> Iterator[Sequence[int]]:
    """The graph's own order, and, unless it is the only one, orders that prefer layers by name, by
    the numbers in their names, those last made ready, and at random."""
    yield range(len(graph.layers))
    if is_chain(graph):
        return
    names = [layer.name for layer in graph.layers]
    numbers = [[int(part) for part in re.findall(r"\d+", name)] for name in names]
    directed = as_networkx(graph)
    yield list(nx.topological_sort(directed))
    yield list(reversed(list(nx.dfs_postorder_nodes(directed))))
    rng = random.Random(0)
    keys: list[Sequence[Any]] = [names, list(zip(numbers, names, strict=True))]
    keys += [[rng.random() for _ in names] for _ in range(RANDOM_ORDERS)]
    for key in keys:
        yield list(nx.lexicographical_topological_sort(directed, key=key.__getitem__))


def _cut(weights: Sequence[float], order: Sequence[int], num_stages: int, bound: float) -> Balance:
    sums = probe.prefix(np.array([float(weights[layer]) for layer in order]))
    chain = probe.Chain(work=sums, sends=(np.zeros(len(sums)),))
    cut = probe.solve(chain, [0] * (num_stages - 1), [1] * num_stages)
    assert cut is not None, "there are enough layers, and memory does not count"
    stages = tuple(tuple(sorted(order[a:b])) for a, b in itertools.pairwise(cut.cuts))
    return Balance(_bottleneck(weights, stages), bound, tuple(order), stages)


def _bottleneck(weights: Sequence[float], stages: Partition) -> float:
    return max(sum(weights[layer] for layer in stage) for stage in stages)


def _even_out(
    graph: LayerGraph, weights: Sequence[float], num_stages: int, best: Balance
) -> Balance:
    """Move layers to lighter stages while edges stay forward, cut the order that this gives, and
    again, until it is no better."""
    while True:
        moved = _moved(graph, weights, best.stages)
        order = tuple(itertools.chain(*moved))
        if not all(moved):
            return best
        found = _cut(weights, order, num_stages, best.lower_bound)
        if found.bottleneck >= best.bottleneck * (1 - ROUNDING):
            return best
        best = found


def _moved(graph: LayerGraph, weights: Sequence[float], stages: Partition) -> Partition:
    """The stages after each layer that makes two stages more alike has moved to the lightest stage
    that its edges allow, the largest gain first."""
    ends = edges(graph)
    home = [0] * len(weights)
    for stage, layers in enumerate(stages):
        for layer in layers:
            home[layer] = stage
    load = [sum(weights[layer] for layer in layers) for layers in stages]
    for _ in range(MOST_MOVES):
        first, last = [0] * len(home), [len(stages) - 1] * len(home)
        for u, w in ends:
            first[w], last[u] = max(first[w], home[u]), min(last[u], home[w])
        gain, layer, to = max(
            (min(t, load[home[l]] - load[x] - t), l, x)
            for l, t in enumerate(weights)
            for x in [min(range(first[l], last[l] + 1), key=load.__getitem__)]
        )
        if gain <= ROUNDING * max(load):
            break
        load[home[layer]] -= weights[layer]
        load[to] += weights[layer]
        home[layer] = to
    return tuple(
        tuple(l for l, at in enumerate(home) if at == stage) for stage in range(len(stages))
    )


class _Heavy(NamedTuple):
    """A graph, those of its layers that weigh something, and their down-sets. A layer that weighs
    nothing can stand in the last stage that holds a layer ahead of it."""

    graph: LayerGraph
    layers: list[int]
    growth: Growth


def _heavy_edges(graph: LayerGraph, heavy: Sequence[int]) -> list[tuple[int, int]]:
    """(u, w) for places in `heavy`: an edge, or a way over layers that weigh nothing."""
    place = {layer: at for at, layer in enumerate(heavy)}
    ahead: list[set[int]] = [set() for _ in graph.layers]
    for u, w in sorted(edges(graph), key=lambda edge: edge[1]):
        ahead[w] |= {place[u]} if u in place else ahead[u]
    return [(u, place[w]) for w in heavy for u in sorted(ahead[w])]


def _with_all_layers(heavy: _Heavy, stages: Sequence[Sequence[int]]) -> list[list[int]]:
    """Stages of places in `heavy.layers`, as stages of all layers."""
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


def _over_all(heavy: _Heavy, weights: Sequence[float], num_stages: int, best: Balance) -> Balance:
    """The best of all orders, no worse than the best that is known."""
    failed = best.lower_bound * (1 - ROUNDING)
    while failed < best.bottleneck * (1 - ROUNDING):
        # Just below the best known comes first: where that is the optimum, one refusal proves it.
        for limit in (best.bottleneck * (1 - ROUNDING), (failed + best.bottleneck) / 2):
            stages = _fill(heavy, weights, limit, num_stages)
            if stages is None:
                failed = limit
                break
            bottleneck = _bottleneck(weights, stages)
            best = Balance(bottleneck, best.lower_bound, tuple(itertools.chain(*stages)), stages)
    return best._replace(lower_bound=best.bottleneck)


def _fill(
    heavy: _Heavy, weights: Sequence[float], limit: float, num_stages: int
) -> Partition | None:
    """Stages within `limit`, or None where no order has so few."""
    if max(weights) > limit:
        return None
    growth = heavy.growth
    times = np.array([weights[layer] for layer in heavy.layers])[growth.node]
    full, used = np.zeros(len(growth.sets), dtype=np.int64), np.zeros(len(growth.sets))
    for begin, end in _levels(growth):
        source, target, time = (
            column[begin:end] for column in (growth.source, growth.target, times)
        )
        opens = used[source] + time > limit
        filled, load = full[source] + opens, np.where(opens, 0.0, used[source]) + time
        firsts = np.flatnonzero(np.diff(target, prepend=-1))
        full[target[firsts]] = np.minimum.reduceat(filled, firsts)
        load[filled > full[target]] = np.inf
        used[target[firsts]] = np.minimum.reduceat(load, firsts)
    if full[-1] >= num_stages:
        return None
    stages = _with_all_layers(heavy, _follow(growth, times, limit, full, used))
    while len(stages) < num_stages:
        _split(stages)
    return tuple(map(tuple, stages))


def _levels(growth: Growth) -> list[tuple[int, int]]:
    """Where the ways to down-sets of 1, 2, … nodes begin and end."""
    sizes = growth.sizes[growth.target]
    bounds = np.searchsorted(sizes, np.arange(1, int(growth.sizes[-1]) + 2))
    return list(itertools.pairwise(bounds.tolist()))


def _follow(
    growth: Growth, times: Array, limit: float, full: Array, used: Array
) -> list[list[int]]:
    """The stages by which `full` and `used` came to the set of all layers."""
    stages: list[list[int]] = [[]]
    at = len(growth.sets) - 1
    while at:
        begin, end = np.searchsorted(growth.target, [at, at + 1])
        for way in range(begin, end):
            before = int(growth.source[way])
            opens = bool(used[before] + times[way] > limit)
            load = (0.0 if opens else used[before]) + times[way]
            if full[before] + opens == full[at] and load == used[at]:
                stages[0].append(int(growth.node[way]))
                if opens:
                    stages.insert(0, [])
                at = before
                break
    return [sorted(stage) for stage in stages]


def _split(stages: list[list[int]]) -> None:
    """Part the stage with the most layers in two; positions stand in a topological order."""
    at = max(range(len(stages)), key=lambda stage: len(stages[stage]))
    half = len(stages[at]) // 2
    stages[at : at + 1] = [stages[at][:half], stages[at][half:]]
