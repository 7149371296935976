"""Lower bounds for graphs with too many downsets to look at all, from classes of them (relaxation.py).

Which chains are kept apart decides what the classes see: those with the largest outputs, where the
cuts between early layers are what costs; or the last ones, where many small outputs add up. Both are
tried, first with few classes, then with many. Each raises the bound by bisection, or proves the plan.
"""

from collections.abc import Sequence

import numpy as np

from autopart.loads.bit_sums import pack, sum_bits
from autopart.loads.pipedream import Network, Nodes, busy_time, replica_counts, transfer_time
from autopart.solvers.replication.downsets import with_ahead
from autopart.solvers.replication.dual import TOLERANCE
from autopart.solvers.replication.network_task import Best, Task
from autopart.solvers.replication.relaxation import Chains, chains, classes, kept_downsets
from autopart.solvers.replication.relaxed_probe import Option, RelaxedProbe

FEW_CLASSES, MOST_CLASSES = 50_000, 1_200_000
"""Classes of the first try, and those that are never passed."""
FINE = 1e-3
"""A bound is not raised by less than this share."""


def raised(task: Task, best: Best) -> Best:
    """`best` with a larger bound, where classes of downsets give one in time."""
    nodes, network = task.nodes, task.network
    total = float(nodes.compute.sum()), float(nodes.parameters.sum())
    asked = options(network, all_sends=task.all_sends)
    machines = int(np.prod(network.machines))
    parts = chains(nodes)
    for ranking in _rankings(nodes, parts):
        kept = _few_kept(parts, ranking)
        step = 2 * (len(ranking) - kept)
        while not best.proven and task.in_time():
            found = classes(nodes, parts, sorted(ranking[:kept]), MOST_CLASSES)
            if found is None:
                kept -= step
                step *= 2
            elif task.in_time():
                best = _raised_by(task, best, RelaxedProbe(found, asked, machines, *total))
            # Short steps after the first one: a try with too many classes costs the most.
            step = -(-step // 4)
            if step <= len(ranking) // 32:
                break
            kept += step
    return best


def options(network: Network, *, all_sends: bool) -> list[Option]:
    """The ways to run a stage; two levels as one, as in pipedream_costs.py."""
    found: list[Option] = []
    z = network.compression
    for inner in replica_counts(network, 0):
        time = busy_time(0.0, 1.0, inner, network.bandwidths[0])
        transfer = transfer_time(1.0, inner, network.bandwidths[0], z)
        if len(network.machines) == 1:
            first = transfer if all_sends else 0.0
            found.append(Option(inner, time * inner, transfer, transfer, first))
            continue
        for outer in replica_counts(network, 1):
            sharing = network.machines[0]
            sync = busy_time(time, 1.0, outer, network.bandwidths[1], sharing)
            between = transfer_time(1.0, outer, network.bandwidths[1], z)
            fastest = min(transfer / outer, between)
            found.append(Option(inner * outer, sync * inner * outer, fastest, 0.0, 0.0))
    return sorted(found)


def _rankings(nodes: Nodes, parts: Chains) -> tuple[list[int], list[int]]:
    """Chains in the orders in which they are kept."""
    count = len(parts.layers)
    work = np.array([float(nodes.compute[list(layers)].sum()) for layers in parts.layers])
    ahead = sum_bits(pack(with_ahead(parts.before), count), work)
    by_size = sorted(range(count), key=lambda chain: (-parts.outputs[chain], chain))
    return by_size, sorted(range(count), key=lambda chain: (-ahead[chain], chain))


def _few_kept(parts: Chains, ranking: Sequence[int]) -> int:
    """How many chains, the first of the ranking, can be kept with few classes."""
    low, high = 1, len(ranking)
    while low < high:
        middle = (low + high + 1) // 2
        if kept_downsets(parts, sorted(ranking[:middle]), FEW_CLASSES) is not None:
            low = middle
        else:
            high = middle - 1
    return low


def _raised_by(task: Task, best: Best, probe: RelaxedProbe) -> Best:
    goal = best.value * (1 - TOLERANCE)
    if probe.refutes(goal, task.deadline):
        return best._replace(bound=goal)
    low, high = best.bound, best.value
    while high > low * (1 + FINE) and task.in_time():
        middle = (low * high) ** 0.5 if low > 0 else high / 2
        if probe.refutes(middle, task.deadline):
            low = middle
        else:
            high = middle
    return best._replace(bound=low)
