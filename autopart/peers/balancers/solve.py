"""Stages with balanced layer times, over every order for a layer graph: the balancers' objective.

Symbols   t[l]     layer l's weight, for example its forward and backward time
          k        stages;  T  the sum over all t

The largest sum over a stage is to be smallest. Sends and memory do not count. So a stage can always
be split without harm: k stages are never worse than fewer.

    bottleneck >= max( T / k, the largest t )                                                    (1)

For one order, bisection is exact (solvers/chain_bisection.py). A graph has many
orders. For a bottleneck, the fewest stages over all of them follow from its downsets D, layer by
layer:

    F(D) = the smallest (full stages, sum over the last stage), in this order, over the layers l that
           may come last in D, from F(D - l) with l added: to the last stage, or to a new one where l
           does not fit                                                                          (2)

Fewer full stages are never worse, since a new stage can be opened at any time. A smaller sum in the
last stage is never worse either. So (2) is exact. Layers without a weight are left out, and the
edges over them stay. Each stands in the last stage that holds a layer ahead of it.

One bottleneck costs O(downsets x width). Bisection is exact up to a relative 1e-12, and starts from
the best cut over some orders. With more than `MOST_DOWNSETS` downsets that best cut is the answer,
and (1) is its bound.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence

import networkx as nx
import numpy as np

from autopart.downsets import covers_by_target, downset_lattice, masks_of_edges
from autopart.errors import InfeasibleError
from autopart.peers.balancers.all_orders import HeavyLayers, heavy_edges, over_all_orders
from autopart.peers.balancers.evened_stages import even_out
from autopart.peers.balancers.one_order import ROUNDING, Balance, cut_order
from autopart.records.layer_graph import LayerGraph, as_networkx, is_chain
from autopart.text import counted

RANDOM_ORDERS = 32
"""Random orders that are cut."""
MOST_DOWNSETS = 100_000
"""Number of downsets up to which all orders are searched."""

STARTS = 8
"""Orders whose stages are evened out."""


def solve(
    graph: LayerGraph,
    weights: Sequence[float],
    num_stages: int,
    orders: Iterable[Sequence[int]] = (),
) -> Balance:
    """`num_stages` stages whose largest sum of `weights` is smallest.

    Each order in `orders` (positions of the layers, every edge forward) is cut beside our
    own. Raises InfeasibleError where there are more stages than layers.
    """
    if num_stages > len(weights):
        raise InfeasibleError(
            f"{counted(num_stages, 'stage')} cannot be made of {counted(len(weights), 'layer')}; ask for at most "
            f"{len(weights)}"
        )
    bound = max(sum(weights) / num_stages, max(weights))
    found: list[Balance] = []
    # Step 1: cut some orders; one that meets the simple bound is optimal.
    for order in (*orders, *_orders(graph)):
        found.append(cut_order(weights, order, num_stages, bound))
        if found[-1].bottleneck <= bound * (1 + ROUNDING):
            return found[-1]._replace(lower_bound=found[-1].bottleneck)
    best = min(found, key=lambda balance: balance.bottleneck)
    if is_chain(graph):
        return best._replace(lower_bound=best.bottleneck)
    # Step 2: search all orders, over the downsets.
    heavy = [layer for layer, weight in enumerate(weights) if weight > 0]
    lattice = downset_lattice(*masks_of_edges(len(heavy), heavy_edges(graph, heavy)), MOST_DOWNSETS)
    if lattice is None:
        # Step 3: with too many downsets, even out the best stages instead.
        starts = sorted(found, key=lambda balance: balance.bottleneck)[:STARTS]
        evened = [even_out(graph, weights, num_stages, start) for start in starts]
        return min(evened, key=lambda balance: balance.bottleneck)
    sizes = np.array([mask.bit_count() for mask in lattice.masks])
    search = HeavyLayers(graph, heavy, sizes, covers_by_target(lattice))
    return over_all_orders(search, weights, num_stages, best)


def _orders(graph: LayerGraph) -> Iterator[Sequence[int]]:
    """The graph's own order, and others unless it is the only one.

    They prefer layers by name, by the numbers in their names, by the time they became ready, and at
    random.
    """
    yield range(len(graph.layers))
    if is_chain(graph):
        return
    names = [layer.name for layer in graph.layers]
    numbers = [[int(part) for part in re.findall(r"\d+", name)] for name in names]
    directed = as_networkx(graph)
    yield list(nx.topological_sort(directed))
    yield list(reversed(list(nx.dfs_postorder_nodes(directed))))
    rng = random.Random(0)
    keys: list[Sequence[str] | Sequence[tuple[list[int], str]] | Sequence[float]] = [
        names,
        list(zip(numbers, names, strict=True)),
    ]
    keys += [[rng.random() for _ in names] for _ in range(RANDOM_ORDERS)]
    for key in keys:
        yield list(nx.lexicographical_topological_sort(directed, key=key.__getitem__))
