"""The smallest bottleneck on a network of one level or two, loads counted as PipeDream counts them.

States are downsets of the layer graph (solvers/replication/downsets.py). PipeDream's own states are
antichains, each of which stands for one downset, so with all downsets no plan of its is missed. The
prefixes of the graph's order come first: they are few, and may already meet a bound. Where there are
more than MOST_STATES downsets, regions around the cuts of the best plan are searched instead
(solvers/replication/regions.py). Machines may stay idle. Two levels: solvers/replication/two_level_network.py.

What the bound assumes: nothing, where all downsets are states. Else it is that of a relaxation over all
downsets, or the larger of a share of all compute and of the heaviest layer by itself.
"""

import time
from typing import NamedTuple

from autopart.graph import LayerGraph
from autopart.loads.pipedream import Network, Part, bits, check_network, nodes_of, score
from autopart.solvers.replication.downsets import (
    MOST_PAIRED_STATES,
    MOST_STATES,
    Costs,
    LevelProbe,
    downsets,
)
from autopart.solvers.replication.network_bound import raised
from autopart.solvers.replication.network_regions import along, in_regions
from autopart.solvers.replication.network_task import (
    Best,
    Task,
    on_one_machine,
    pair_probe,
    spans,
    tightened,
)
from autopart.solvers.replication.two_level_network import two_levels

MOST_CHEAP_STATES = 50_000
"""States from which on each look at all of them costs so much that a good plan is sought first."""


class NetworkPlan(NamedTuple):
    """Stages on a network, and how good they are."""

    objective: float
    """Seconds of the busiest stage or link for a minibatch."""
    lower_bound: float
    """Seconds that no plan can beat; the objective itself where it is proven."""
    parts: tuple[Part, ...]
    num_downsets: int | None
    """Of the layer graph; None where they were not all listed."""


def solve(
    graph: LayerGraph, network: Network, *, all_sends: bool = False, time_limit: float = 60.0
) -> NetworkPlan:
    """The stages and replicas with the smallest bottleneck, as loads/pipedream.py counts it.

    `all_sends` charges the first stages' sends too. After about `time_limit` seconds the best plan
    so far is returned, with the bound that was reached. Raises UsageError where the network's numbers
    cannot be meant. There always is a plan: all on one machine.
    """
    check_network(network)
    task = Task(nodes_of(graph), network, all_sends, time.perf_counter() + time_limit)
    search = _one_level if len(network.machines) == 1 else two_levels
    best, num_downsets = search(task)
    parts = _parts(best)
    objective = score(graph, network, parts, all_sends=all_sends)
    bound = objective if best.proven else min(best.bound, objective)
    return NetworkPlan(objective, bound, parts, num_downsets)


def _parts(best: Best) -> tuple[Part, ...]:
    parts: list[Part] = []
    for number, (start, cut) in enumerate(spans(0, best.cuts)):
        inner = [
            Part(tuple(bits(part.ahead & ~begin)), part.replicas)
            for begin, part in (spans(start, best.inner[number]) if best.inner else ())
        ]
        parts.append(Part(tuple(bits(cut.ahead & ~start)), cut.replicas, tuple(inner)))
    return tuple(parts)


def _one_level(task: Task) -> tuple[Best, int | None]:
    machines = task.network.machines[0]
    nodes = task.nodes
    best = on_one_machine(task)
    best = along(task, best, range(len(nodes.before)))
    if best.proven or not task.in_time():
        return best, None
    states = downsets(nodes.before, nodes.after, MOST_STATES)
    if states is None:
        return raised(task, in_regions(task, best)), None
    costs = task.costs(states)
    if len(states.masks) <= MOST_PAIRED_STATES:
        probe = pair_probe(costs, states, machines)
        return tightened(task, best, probe, costs, states), len(states.masks)
    if len(states.masks) > MOST_CHEAP_STATES or task.network.memory_bytes:
        best = in_regions(task, best)
    without = Costs(costs.choices, costs.work)
    found = tightened(task, best, LevelProbe(states, without, machines), without, states)
    if task.network.memory_bytes:
        found = best._replace(bound=found.bound)
    return found, len(states.masks)
