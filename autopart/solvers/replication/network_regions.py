"""Good plans on a network of one level for graphs with too many downsets to look at all.

First the best plans over some downsets: the prefixes of a few orders, and the irreducible ones, among
which are those with the least to send. Then, from the best of these, and from the best one with one
machine a stage, searches over all downsets around its cuts (solvers/replication/regions.py), until none
helps. Nothing is proven here.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from autopart.loads.pipedream import Nodes, join_sums
from autopart.solvers.replication.downsets import (
    MOST_PAIRED_STATES,
    MOST_SPANNING_LAYERS,
    Costs,
    LevelProbe,
    States,
    irreducibles,
    prefixes,
    unpack,
    with_ahead,
)
from autopart.solvers.replication.network_task import (
    Best,
    Probe,
    Task,
    on_one_machine,
    pair_probe,
    spans,
    tightened,
)
from autopart.solvers.replication.order import OrderProbe
from autopart.solvers.replication.regions import (
    RULES,
    Graph,
    Rule,
    around_cuts,
    ordered,
    split_evenly,
)

SHARES, JOINS_OF_A_SHARE = 600, 2
"""How many unions of two downsets are looked at."""
REGION_LIMITS = (250, 1500)
"""Downsets around one cut, first and last."""


def in_regions(task: Task, best: Best) -> Best:
    """The better of `best` and what searches around cuts end with; its bound is kept."""
    nodes = task.nodes
    graph = Graph(nodes.before, nodes.after, nodes.outputs.tolist())
    everything = (1 << len(nodes.before)) - 1
    start = along(task, best, range(len(nodes.before)))
    states = spanning_states(nodes)
    if states is not None:
        costs = task.costs(states)
        probe = pair_probe(costs, states, task.network.machines[0])
        start = _improved(task, start, probe, costs, states)
    for rule in RULES:
        start = along(task, start, ordered(graph, 0, everything, rule))
    found = [_descend(task, start, graph)]
    if not task.network.straight:
        straight = task._replace(network=task.network._replace(straight=True))
        one_each = in_regions(straight, on_one_machine(straight))
        found.append(_descend(task, one_each, graph))
    return min(found, key=lambda plan: plan.value)._replace(bound=best.bound)


def spanning_states(nodes: Nodes) -> States | None:
    """The irreducible downsets and unions of two with small cuts; None for a very large graph."""
    if len(nodes.before) > MOST_SPANNING_LAYERS:
        return None
    return irreducibles(nodes.before, nodes.after, _smallest_joins(nodes))


def _smallest_joins(nodes: Nodes) -> list[int]:
    """Unions of two layers and all that is ahead of them: for each small share of the compute those
    with the smallest cuts."""
    ahead = with_ahead(nodes.before)
    left, right = np.triu_indices(len(ahead), 1)
    apart = ~unpack(ahead, len(ahead))[right, left]  # layers stand in a topological order
    left, right = left[apart], right[apart]
    if not len(left):
        return []
    compute, cut = join_sums(nodes, ahead, left, right)
    share = (compute / (nodes.compute.sum() or 1.0) * SHARES).astype(np.int64)
    order = np.lexsort((cut, share))
    rank = np.arange(len(order)) - np.searchsorted(share[order], share[order])
    chosen = order[rank < JOINS_OF_A_SHARE]
    return [ahead[u] | ahead[v] for u, v in zip(left[chosen], right[chosen], strict=True)]


def along(task: Task, best: Best, order: Sequence[int]) -> Best:
    """The better of `best` and the best plan along an order of the layers."""
    states = prefixes(task.nodes.before, order)
    costs = task.costs(states)
    probe = OrderProbe(costs, task.network.machines[0])
    return _improved(task, best, probe, costs, states)


def _improved(task: Task, best: Best, probe: Probe, costs: Costs, states: States) -> Best:
    """The better of `best` and the best plan over some states; its bound is kept."""
    return tightened(task, best, probe, costs, states)._replace(bound=best.bound)


def _descend(task: Task, best: Best, graph: Graph) -> Best:
    """Regions around the cuts of the best plan, by one rule after the other, until none helps; then
    larger ones."""
    work: list[float] = task.nodes.compute.tolist()
    for limit in REGION_LIMITS:
        fruitless = 0
        for rule in itertools.cycle(RULES):
            if fruitless == len(RULES) or best.proven or not task.in_time():
                break
            cuts: list[int] = []
            for start, cut in spans(0, best.cuts):
                cuts += split_evenly(graph, work, start, cut.ahead, cut.replicas, rule)
                cuts.append(cut.ahead)
            better = _around(task, best, graph, cuts, rule, limit)
            fruitless = 0 if better.value < best.value else fruitless + 1
            best = better
    return best


def _around(
    task: Task, best: Best, graph: Graph, cuts: Sequence[int], rule: Rule, limit: int
) -> Best:
    """The better of `best` and the best plan over the downsets around cuts, `limit` for each."""
    if task.network.memory_bytes:
        limit = min(limit, MOST_PAIRED_STATES // len(cuts))
    states, pieces = around_cuts(graph, cuts, rule, limit)
    costs = task.costs(states, pieces)
    machines = task.network.machines[0]
    if len(states.masks) > MOST_PAIRED_STATES and not task.network.memory_bytes:
        return _improved(task, best, LevelProbe(states, costs, machines), costs, states)
    return _improved(task, best, pair_probe(costs, states, machines), costs, states)
