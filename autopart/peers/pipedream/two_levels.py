"""The smallest bottleneck on a network with two levels: pipelines within nodes, and over nodes.

1. Prefixes along the graph's own order, by matrices over their pairs (two_levels_pairs.py).
2. All downsets, up to MOST_PAIRED_DOWNSETS: by bisection without matrices (two_levels_bisection.py).
3. Where a question stays open, up to MOST_NODE_DOWNSETS: by the matrices again.
4. With more downsets the bound takes two levels as one (charge_arrays.py). Plans come from other
   orders, and from regions around the best plan's cuts (regions.py).
"""

import itertools
import math

from autopart.peers.pipedream.bound import raised
from autopart.peers.pipedream.charge_arrays import relaxed_costs
from autopart.peers.pipedream.cover_search import CoverSearch
from autopart.peers.pipedream.downsets import (
    MOST_DOWNSETS,
    MOST_PAIRED_DOWNSETS,
    Downsets,
    list_downsets,
    prefixes,
)
from autopart.peers.pipedream.incumbent import Best, Task, on_one_machine, pair_search, tightened
from autopart.peers.pipedream.many_downsets import spanning_downsets
from autopart.peers.pipedream.regions import RULES, Graph, around_cuts, ordered
from autopart.peers.pipedream.two_levels_bisection import by_bisection
from autopart.peers.pipedream.two_levels_pairs import MOST_NODE_DOWNSETS, on_nodes

MOST_PAIRS = 4096
"""Choices times machines up to which two levels are bounded as one."""


def two_levels(task: Task) -> tuple[Best, int | None]:
    """The best plan on two levels, and the number of downsets if they were listed."""
    nodes = task.nodes
    best = on_one_machine(task)
    best = on_nodes(task, best, prefixes(nodes.before, range(len(nodes.before))))
    if best.proven or not task.in_time():
        return best, None
    downsets = list_downsets(nodes.before, nodes.after, MOST_DOWNSETS)
    if downsets is None:
        return raised(task, _around_cuts(task, best)), None
    # The bound, by the strongest method that the number of downsets allows.
    if len(downsets.masks) > MOST_PAIRED_DOWNSETS:
        best = best._replace(bound=_relaxed_bound(task, best, downsets))
    elif task.network.memory_bytes is None:
        best = by_bisection(task, best, downsets)
    else:
        # Memory ties the two ends of a stage together: bisection runs without it, for the bound
        # alone.
        roomy = task._replace(network=task.network._replace(memory_bytes=None))
        best = best._replace(bound=by_bisection(roomy, best, downsets).bound)
    if best.proven or not task.in_time():
        return best, len(downsets.masks)
    if len(downsets.masks) <= MOST_NODE_DOWNSETS:
        return on_nodes(task, best, downsets, complete=True), len(downsets.masks)
    return _around_cuts(task, best), len(downsets.masks)


def _around_cuts(task: Task, best: Best) -> Best:
    """The better plan: `best`, or plans along other orders and around the best plan's cuts on both
    levels."""
    nodes = task.nodes
    graph = Graph(nodes.before, nodes.after, nodes.outputs.tolist())
    everything = (1 << len(nodes.before)) - 1
    spanning = spanning_downsets(nodes)
    # Step 1: irreducible downsets.
    if spanning is not None:
        best = on_nodes(task, best, spanning)
    # Step 2: prefixes along three more orders.
    for rule in RULES:
        if task.in_time() and not best.proven:
            downsets = prefixes(nodes.before, ordered(graph, 0, everything, rule))
            best = on_nodes(task, best, downsets)
    fruitless = 0
    # Step 3: regions around all cuts, on both levels, until no rule helps.
    for rule in itertools.cycle(RULES):
        if fruitless == len(RULES) or best.proven or not task.in_time():
            break
        cuts = [cut.ahead for pipeline in best.inner for cut in pipeline]
        limit = max(2, MOST_NODE_DOWNSETS // len(cuts) - 2)
        better = on_nodes(task, best, *around_cuts(graph, cuts, rule, limit))
        fruitless = 0 if better.value < best.value else fruitless + 1
        best = better
    return best


def _relaxed_bound(task: Task, best: Best, downsets: Downsets) -> float:
    """A bound over all downsets, from two levels as one."""
    sums = task.sums(downsets)
    costs = relaxed_costs(sums, task.network)
    machines = math.prod(task.network.machines)
    if len(costs.choices) * machines > MOST_PAIRS:
        return best.bound
    if len(downsets.masks) <= MOST_PAIRED_DOWNSETS:
        search = pair_search(costs, downsets, machines)
    else:
        search = CoverSearch(downsets, costs, machines)
    return tightened(task, best, search, costs, downsets).bound
