"""The smallest bottleneck on a network with one level or two, under PipeDream's charges.

PipeDream's own program searches antichains. Each antichain stands for one downset, so a search over
all downsets misses none of its plans. The prefixes along the graph's order come first: they are
few, and may already meet a bound. With more than MOST_DOWNSETS downsets, regions around the best
plan's cuts are searched instead (regions.py). Machines may stay idle. Two levels: two_levels.py.

The bound assumes nothing where all downsets were searched. Otherwise it is the bound from a
relaxation over all downsets. Or it is the larger one of two: an even share of all compute, and the
heaviest layer alone.
"""

import time
from typing import NamedTuple

from autopart.downsets import bits
from autopart.peers.pipedream.bound import raised
from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.charges import Network, NetworkStage, check_network, score
from autopart.peers.pipedream.cover_search import CoverSearch
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.downsets import MOST_DOWNSETS, MOST_PAIRED_DOWNSETS, list_downsets
from autopart.peers.pipedream.incumbent import (
    Best,
    Task,
    on_one_machine,
    pair_search,
    spans,
    tightened,
)
from autopart.peers.pipedream.many_downsets import along, in_regions
from autopart.peers.pipedream.two_levels import two_levels
from autopart.records.layer_graph import LayerGraph

MOST_CHEAP_DOWNSETS = 50_000
"""Number of downsets from which on a good plan is sought first: looking at all is then expensive.
"""


class NetworkPlan(NamedTuple):
    """Stages on a network, their objective and its lower bound."""

    objective: float
    """Seconds that the busiest stage or link takes per minibatch."""
    lower_bound: float
    """Seconds that no plan can beat; the objective itself where it is proven."""
    stages: tuple[NetworkStage, ...]
    num_downsets: int | None
    """Number of downsets in the layer graph; None where they were not all listed."""


def solve(
    graph: LayerGraph, network: Network, *, all_sends: bool = False, time_limit: float = 60.0
) -> NetworkPlan:
    """The stages and replicas with the smallest bottleneck under PipeDream's charges (charges.py).

    `all_sends` charges the first stages' sends too. After about `time_limit` seconds the best plan
    so far is returned, with the bound so far. There always is a plan: all layers on one machine.
    Raises UsageError where a number in the network is out of range.
    """
    check_network(network)
    task = Task(charged_layers(graph), network, all_sends, time.perf_counter() + time_limit)
    search = _one_level if len(network.machines) == 1 else two_levels
    best, num_downsets = search(task)
    stages = _stages(best)
    objective = score(graph, network, stages, all_sends=all_sends)
    bound = objective if best.proven else min(best.bound, objective)
    return NetworkPlan(objective, bound, stages, num_downsets)


def _stages(best: Best) -> tuple[NetworkStage, ...]:
    """The stages of a plan."""
    stages: list[NetworkStage] = []
    for number, (start, cut) in enumerate(spans(0, best.cuts)):
        inner = [
            NetworkStage(tuple(bits(end.ahead & ~begin)), end.replicas)
            for begin, end in (spans(start, best.inner[number]) if best.inner else ())
        ]
        stages.append(NetworkStage(tuple(bits(cut.ahead & ~start)), cut.replicas, tuple(inner)))
    return tuple(stages)


def _one_level(task: Task) -> tuple[Best, int | None]:
    """The best plan on one level, and the number of downsets if they were listed."""
    machines = task.network.machines[0]
    nodes = task.nodes
    best = on_one_machine(task)
    # Step 1: the graph's own order, which is fast and may meet the simple bound.
    best = along(task, best, range(len(nodes.before)))
    if best.proven or not task.in_time():
        return best, None
    # Step 2: all downsets; where they are too many, regions and a relaxed bound.
    downsets = list_downsets(nodes.before, nodes.after, MOST_DOWNSETS)
    if downsets is None:
        return raised(task, in_regions(task, best)), None
    costs = task.costs(downsets)
    # Step 3: few downsets: all pairs, with the memory limit.
    if len(downsets.masks) <= MOST_PAIRED_DOWNSETS:
        search = pair_search(costs, downsets, machines)
        return tightened(task, best, search, costs, downsets), len(downsets.masks)
    # Step 4: many downsets: along covers, without the memory limit. With a limit this gives only a
    # bound.
    if len(downsets.masks) > MOST_CHEAP_DOWNSETS or task.network.memory_bytes:
        best = in_regions(task, best)
    without = DownsetCosts(costs.choices, costs.work)
    found = tightened(task, best, CoverSearch(downsets, without, machines), without, downsets)
    if task.network.memory_bytes:
        found = best._replace(bound=found.bound)
    return found, len(downsets.masks)
