"""Good plans on a network with one level, for graphs with too many downsets to look at all.

First come the best plans over some downsets: prefixes along a few orders, and the irreducible
downsets, which have little to send. Then all downsets around the cuts of a plan are searched, until
none helps (regions.py). This starts from the best plan, and from the best one with a single machine
per stage. Nothing is proven here.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from autopart.downsets import unpack
from autopart.peers.pipedream.charged_layers import ChargedLayers
from autopart.peers.pipedream.cover_search import CoverSearch
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.downset_sums import join_sums
from autopart.peers.pipedream.downsets import (
    MOST_PAIRED_DOWNSETS,
    MOST_SPANNING_LAYERS,
    Downsets,
    irreducibles,
    prefixes,
    with_ahead,
)
from autopart.peers.pipedream.incumbent import (
    Best,
    StagesWithin,
    Task,
    on_one_machine,
    pair_search,
    spans,
    tightened,
)
from autopart.peers.pipedream.prefix_search import PrefixSearch
from autopart.peers.pipedream.regions import RULES, Graph, Rule, around_cuts, ordered, split_evenly

SHARES, JOINS_OF_A_SHARE = 600, 2
"""Shares of the compute, and the unions of two downsets per share."""
REGION_LIMITS = (250, 1500)
"""Downsets around one cut, first and last."""


def in_regions(task: Task, best: Best) -> Best:
    """The better plan: `best`, or the result of searches around cuts; its bound is kept."""
    nodes = task.nodes
    graph = Graph(nodes.before, nodes.after, nodes.outputs.tolist())
    everything = (1 << len(nodes.before)) - 1
    # Step 1: prefixes along the graph's own order.
    start = along(task, best, range(len(nodes.before)))
    # Step 2: irreducible downsets and their smallest unions.
    downsets = spanning_downsets(nodes)
    if downsets is not None:
        costs = task.costs(downsets)
        search = pair_search(costs, downsets, task.network.machines[0])
        start = _improved(task, start, search, costs, downsets)
    # Step 3: prefixes along three more orders.
    for rule in RULES:
        start = along(task, start, ordered(graph, 0, everything, rule))
    # Step 4: regions around the best cuts, and around the best cuts with a single machine per
    # stage.
    found = [_descend(task, start, graph)]
    if not task.network.straight:
        straight = task._replace(network=task.network._replace(straight=True))
        one_each = in_regions(straight, on_one_machine(straight))
        found.append(_descend(task, one_each, graph))
    return min(found, key=lambda plan: plan.value)._replace(bound=best.bound)


def spanning_downsets(nodes: ChargedLayers) -> Downsets | None:
    """The irreducible downsets and unions of two with small cuts; None for a very large graph."""
    if len(nodes.before) > MOST_SPANNING_LAYERS:
        return None
    return irreducibles(nodes.before, nodes.after, _smallest_joins(nodes))


def _smallest_joins(nodes: ChargedLayers) -> list[int]:
    """Unions of two layers with everything ahead of them.

    For each small share of the compute they are the unions with the smallest cuts.
    """
    ahead = with_ahead(nodes.before)
    left, right = np.triu_indices(len(ahead), 1)
    apart = ~unpack(ahead, len(ahead))[right, left]  # layers stand in a topological order
    left, right = left[apart], right[apart]
    # Pairs that are nested give no new downset.
    if not len(left):
        return []
    compute, cut = join_sums(nodes, ahead, left, right)
    share = (compute / (nodes.compute.sum() or 1.0) * SHARES).astype(np.int64)
    order = np.lexsort((cut, share))
    rank = np.arange(len(order)) - np.searchsorted(share[order], share[order])
    chosen = order[rank < JOINS_OF_A_SHARE]
    return [ahead[u] | ahead[v] for u, v in zip(left[chosen], right[chosen], strict=True)]


def along(task: Task, best: Best, order: Sequence[int]) -> Best:
    """The better plan: `best`, or the best one along an order of the layers."""
    downsets = prefixes(task.nodes.before, order)
    costs = task.costs(downsets)
    search = PrefixSearch(costs, task.network.machines[0])
    return _improved(task, best, search, costs, downsets)


def _improved(
    task: Task, best: Best, search: StagesWithin, costs: DownsetCosts, downsets: Downsets
) -> Best:
    """The better plan: `best`, or the best one over these downsets; its bound is kept."""
    return tightened(task, best, search, costs, downsets)._replace(bound=best.bound)


def _descend(task: Task, best: Best, graph: Graph) -> Best:
    """Regions around the best plan's cuts, rule by rule, until none helps; then larger ones."""
    work: list[float] = task.nodes.compute.tolist()
    for limit in REGION_LIMITS:
        fruitless = 0
        for rule in itertools.cycle(RULES):
            if fruitless == len(RULES) or best.proven or not task.in_time():
                break
            # Step 1: the plan's cuts, and cuts that split each replicated stage evenly.
            cuts: list[int] = []
            for start, cut in spans(0, best.cuts):
                cuts += split_evenly(graph, work, start, cut.ahead, cut.replicas, rule)
                cuts.append(cut.ahead)
            # Step 2: search around them; a full round without success ends this size.
            better = _around(task, best, graph, cuts, rule, limit)
            fruitless = 0 if better.value < best.value else fruitless + 1
            best = better
    return best


def _around(
    task: Task, best: Best, graph: Graph, cuts: Sequence[int], rule: Rule, limit: int
) -> Best:
    """The better plan: `best`, or the best one over the downsets around cuts, `limit` for each."""
    if task.network.memory_bytes:
        limit = min(limit, MOST_PAIRED_DOWNSETS // len(cuts))
    downsets, pieces = around_cuts(graph, cuts, rule, limit)
    costs = task.costs(downsets, pieces)
    machines = task.network.machines[0]
    if len(downsets.masks) > MOST_PAIRED_DOWNSETS and not task.network.memory_bytes:
        return _improved(task, best, CoverSearch(downsets, costs, machines), costs, downsets)
    return _improved(task, best, pair_search(costs, downsets, machines), costs, downsets)
