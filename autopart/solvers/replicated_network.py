"""The smallest bottleneck on a network of one level or two, loads counted as PipeDream counts them.

States are downsets of the layer graph (solvers/replicated_downsets.py). PipeDream's own states are
antichains, each of which stands for one downset, so with all downsets no plan of its is missed. The
prefixes of the graph's order come first: they are few, and may already meet a bound. Where there are
more than MOST_STATES downsets, regions around the cuts of the best plan are searched instead
(solvers/replicated_regions.py). Machines may stay idle. Two levels: solvers/two_level_network.py.

What the bound assumes: nothing, where all downsets are states. Else it is that of a relaxation over all
downsets, or the larger of a share of all compute and of the heaviest layer by itself.
"""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

from autopart.graph import LayerGraph
from autopart.loads.pipedream import Network, Part, bits, check_network, nodes_of, score, state_sums
from autopart.solvers.network_task import (
    Best,
    Probe,
    Task,
    on_one_machine,
    pair_probe,
    spans,
    tightened,
)
from autopart.solvers.replicated_downsets import (
    MOST_PAIRED_STATES,
    MOST_STATES,
    Costs,
    LevelProbe,
    States,
    downsets,
    prefixes,
)
from autopart.solvers.replicated_order import OrderProbe
from autopart.solvers.replicated_regions import (
    RULES,
    Graph,
    Rule,
    around_cuts,
    ordered,
    split_evenly,
)
from autopart.solvers.two_level_network import two_levels

REGION_LIMITS = (250, 1500)
"""Downsets around one cut, first and last."""


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
    best = _along(task, best, range(len(nodes.before)))
    if best.proven or not task.in_time():
        return best, None
    states = downsets(nodes.before, nodes.after, MOST_STATES)
    if states is None or (task.network.memory_bytes and len(states.masks) > MOST_PAIRED_STATES):
        return _in_regions(task, best), None
    costs = task.costs(states)
    if len(states.masks) > MOST_PAIRED_STATES:
        # Each look is dear here; a plan near the best one spares most of them.
        best = _in_regions(task, best)
        probe: Probe = LevelProbe(states, costs, machines)
    else:
        probe = pair_probe(costs, states, machines)
    return tightened(task, best, probe, costs, states), len(states.masks)


def _along(task: Task, best: Best, order: Sequence[int]) -> Best:
    states = prefixes(task.nodes.before, order)
    costs = task.costs(states)
    probe = OrderProbe(costs, task.network.machines[0])
    return _improved(task, best, probe, costs, states)


def _improved(task: Task, best: Best, probe: Probe, costs: Costs, states: States) -> Best:
    """The better of `best` and the best plan over some states; its bound is kept."""
    return tightened(task, best, probe, costs, states)._replace(bound=best.bound)


def _in_regions(task: Task, best: Best) -> Best:
    """The better of `best` and what searches around cuts end with: from plans along some orders, from
    the smallest cuts of these, and from the best plan with one machine a stage."""
    nodes = task.nodes
    graph = Graph(nodes.before, nodes.after, nodes.outputs.tolist())
    everything = (1 << len(nodes.before)) - 1
    orders = [list(range(len(nodes.before)))]
    orders += [ordered(graph, 0, everything, rule) for rule in RULES]
    start = best
    for order in orders:
        start = _along(task, start, order)
    for order, rule in zip(orders, (RULES[0], *RULES), strict=True):
        if task.in_time() and not start.proven:
            cuts = _smallest_cuts(task, order)
            start = _around(task, start, graph, cuts, rule, REGION_LIMITS[0])
    found = [_descend(task, start, graph)]
    if not task.network.straight:
        straight = task._replace(network=task.network._replace(straight=True))
        one_each = _in_regions(straight, on_one_machine(straight))
        found.append(_descend(task, one_each, graph))
    return min(found, key=lambda plan: plan.value)._replace(bound=best.bound)


def _smallest_cuts(task: Task, order: Sequence[int]) -> list[int]:
    """Prefixes of an order, the one with the smallest cut for each share of the compute."""
    states = prefixes(task.nodes.before, order)
    sums = state_sums(task.nodes, states.grown, states.tops)
    shares = sums.compute * (2 * task.network.machines[0] / (sums.compute[-1] or 1.0))
    smallest: dict[int, int] = {}
    for at in range(1, len(order)):
        share = int(shares[at])
        if share not in smallest or sums.cut[at] < sums.cut[smallest[share]]:
            smallest[share] = at
    return [*(states.masks[at] for at in sorted(smallest.values())), states.masks[-1]]


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
