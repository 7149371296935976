"""Stages of balanced layer times, over every order of a layer graph: what balancers look for.

Symbols   t[l]     what layer l weighs, for example its forward and backward time
          k        stages;  T  the sum of all t

The largest sum of a stage is to be smallest. Sends and memory count for nothing, so that a stage
can always be split without harm: k stages are never worse than fewer.

    bottleneck >= max( T / k, the largest t )                                                    (1)

For a sequence of layers the probe (solvers/probe.py) is exact. A graph has many sequences: with few
down-sets, all of them are searched at once (solvers/devices.py, every stage on one device), which is
exact; else the best of some orders is taken, and (1) is what is proven for the others.
"""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from autopart.errors import InfeasibleError
from autopart.graph import LayerGraph, as_networkx, is_chain
from autopart.solvers import devices, probe
from autopart.stage_load import Partition
from autopart.states import TooManyPairs, down_sets, nested_pairs

RANDOM_ORDERS = 32

ROUNDING = 1e-12
"""Relative error of a sum of times, within which a bottleneck meets its bound."""

MOST_STATES = 20_000


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
    return _over_all(graph, weights, num_stages, best)


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


def _over_all(
    graph: LayerGraph, weights: Sequence[float], num_stages: int, best: Balance
) -> Balance:
    """The best of all orders, no worse than the best that is known; that one where they are too
    many to be searched."""
    times, limit = np.array(weights, dtype=float), best.bottleneck * (1 + ROUNDING)
    states = down_sets(len(weights), as_networkx(graph).edges, MOST_STATES)
    if states is None:
        return best
    try:
        pairs = nested_pairs(states, times, num_stages, np.ones(1), limit)
    except TooManyPairs:
        return best
    done = states @ times
    time = done[pairs.high] - done[pairs.low]
    low, high, time = (column[time <= limit] for column in (pairs.low, pairs.high, time))
    one = np.ones(len(low), dtype=np.int64)
    options = devices.Options(low, high, one, one, one * num_stages, time)
    path = devices.solve(options, states.sum(axis=1), done, num_stages, num_stages)
    if path is None or path.bottleneck >= best.bottleneck * (1 - ROUNDING):
        return best._replace(lower_bound=best.bottleneck)
    stages = [np.flatnonzero(states[high[at]] & ~states[low[at]]).tolist() for at in path.options]
    while len(stages) < num_stages:
        _split(stages)
    found = tuple(map(tuple, stages))
    bottleneck = _bottleneck(weights, found)
    return Balance(bottleneck, bottleneck, tuple(itertools.chain(*found)), found)


def _split(stages: list[list[int]]) -> None:
    """Part the stage with the most layers in two; positions stand in a topological order."""
    at = max(range(len(stages)), key=lambda stage: len(stages[stage]))
    half = len(stages[at]) // 2
    stages[at : at + 1] = [stages[at][:half], stages[at][half:]]
