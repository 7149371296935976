"""Stages that are evened out by moving layers between them."""

import itertools
from collections.abc import Sequence

from autopart.peers.balancers.one_order import ROUNDING, Balance, cut_order
from autopart.records.layer_graph import LayerGraph, edges
from autopart.records.layouts import Partition

MOST_MOVES = 1_000
"""Moves in one round."""


def even_out(
    graph: LayerGraph, weights: Sequence[float], num_stages: int, best: Balance
) -> Balance:
    """Better stages from `best`: move layers, then cut the order that results, until this no longer
    helps.

    Moves keep all edges forward.
    """
    while True:
        moved = _moved(graph, weights, best.stages)
        order = tuple(itertools.chain(*moved))
        if not all(moved):
            return best
        found = cut_order(weights, order, num_stages, best.lower_bound)
        if found.bottleneck >= best.bottleneck * (1 - ROUNDING):
            return best
        best = found


def _moved(graph: LayerGraph, weights: Sequence[float], stages: Partition) -> Partition:
    """The stages after moves that make two stages more alike, the largest gain first."""
    ends = edges(graph)
    home = [0] * len(weights)
    for stage, layers in enumerate(stages):
        for layer in layers:
            home[layer] = stage
    sums = [sum(weights[layer] for layer in layers) for layers in stages]
    for _ in range(MOST_MOVES):
        # Step 1: the stages that each layer's edges allow.
        first, last = [0] * len(home), [len(stages) - 1] * len(home)
        for u, w in ends:
            first[w], last[u] = max(first[w], home[u]), min(last[u], home[w])
        # Step 2: the move with the largest gain, each layer to its lightest allowed stage.
        gain, layer, to = max(
            (min(t, sums[home[l]] - sums[x] - t), l, x)
            for l, t in enumerate(weights)
            for x in [min(range(first[l], last[l] + 1), key=sums.__getitem__)]
        )
        if gain <= ROUNDING * max(sums):
            break
        # Step 3: make it.
        sums[home[layer]] -= weights[layer]
        sums[to] += weights[layer]
        home[layer] = to
    return tuple(
        tuple(l for l, at in enumerate(home) if at == stage) for stage in range(len(stages))
    )
