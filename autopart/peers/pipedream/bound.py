"""Lower bounds for graphs with too many downsets to look at all, by bisection over downset classes.

The chains that are kept apart decide how much the classes see. Chains with large outputs show the
costly cuts between early layers. The last chains show many small outputs that add up. Both rankings
are tried, first with few classes, then with many. Each raises the bound by bisection, or proves the
plan (downset_classes.py, downset_classes_refutation.py).
"""

from collections.abc import Sequence

import numpy as np

from autopart.downsets import pack, sum_bits
from autopart.peers.pipedream.charged_layers import ChargedLayers
from autopart.peers.pipedream.charges import Network, busy_time, replica_counts, transfer_time
from autopart.peers.pipedream.downset_classes import Chains, chains, classes, kept_downsets
from autopart.peers.pipedream.downset_classes_refutation import RelaxedChoice, RelaxedStages
from autopart.peers.pipedream.downsets import with_ahead
from autopart.peers.pipedream.incumbent import Best, Task
from autopart.solvers.fewest_ranks import TOLERANCE

FEW_CLASSES, MOST_CLASSES = 50_000, 1_200_000
"""Classes in the first try, and a limit that no try exceeds."""
FINE = 1e-3
"""Smallest relative step by which a bound is raised."""


def raised(task: Task, best: Best) -> Best:
    """`best` with a larger bound, where downset classes give one in time."""
    nodes, network = task.nodes, task.network
    total = float(nodes.compute.sum()), float(nodes.parameters.sum())
    asked = options(network, all_sends=task.all_sends)
    machines = int(np.prod(network.machines))
    parts = chains(nodes)
    # Both rankings: start with few classes, then keep more chains.
    for ranking in _rankings(nodes, parts):
        kept = _few_kept(parts, ranking)
        step = 2 * (len(ranking) - kept)
        while not best.proven and task.in_time():
            # Step 1: make the classes; too many mean fewer chains.
            found = classes(nodes, parts, sorted(ranking[:kept]), MOST_CLASSES)
            if found is None:
                kept -= step
                step *= 2
            elif task.in_time():
                # Step 2: raise the bound with them.
                best = _raised_by(task, best, RelaxedStages(found, asked, machines, *total))
            # Step 3: keep a few more chains. Steps are short: a try with too many classes costs the
            # most.
            step = -(-step // 4)
            if step <= len(ranking) // 32:
                break
            kept += step
    return best


def options(network: Network, *, all_sends: bool) -> list[RelaxedChoice]:
    """The choices for a stage; two levels as one, see charge_arrays.py."""
    found: list[RelaxedChoice] = []
    z = network.compression
    for inner in replica_counts(network, 0):
        time = busy_time(0.0, 1.0, inner, network.bandwidths[0])
        transfer = transfer_time(1.0, inner, network.bandwidths[0], z)
        if len(network.machines) == 1:
            first = transfer if all_sends else 0.0
            found.append(RelaxedChoice(inner, time * inner, transfer, transfer, first))
            continue
        for outer in replica_counts(network, 1):
            sharing = network.machines[0]
            sync = busy_time(time, 1.0, outer, network.bandwidths[1], sharing)
            between = transfer_time(1.0, outer, network.bandwidths[1], z)
            fastest = min(transfer / outer, between)
            found.append(RelaxedChoice(inner * outer, sync * inner * outer, fastest, 0.0, 0.0))
    return sorted(found)


def _rankings(nodes: ChargedLayers, parts: Chains) -> tuple[list[int], list[int]]:
    """Chains in the orders in which they are kept: by output size, and by the compute ahead of
    them."""
    count = len(parts.layers)
    work = np.array([float(nodes.compute[list(layers)].sum()) for layers in parts.layers])
    ahead = sum_bits(pack(with_ahead(parts.before), count), work)
    by_size = sorted(range(count), key=lambda chain: (-parts.outputs[chain], chain))
    return by_size, sorted(range(count), key=lambda chain: (-ahead[chain], chain))


def _few_kept(parts: Chains, ranking: Sequence[int]) -> int:
    """How many chains, the first in the ranking, can be kept with few classes."""
    low, high = 1, len(ranking)
    while low < high:
        middle = (low + high + 1) // 2
        if kept_downsets(parts, sorted(ranking[:middle]), FEW_CLASSES) is not None:
            low = middle
        else:
            high = middle - 1
    return low


def _raised_by(task: Task, best: Best, relaxed: RelaxedStages) -> Best:
    """`best` with a bound from one set of classes: its own value if that is refuted, else by
    bisection."""
    goal = best.value * (1 - TOLERANCE)
    if relaxed.refutes(goal, task.deadline):
        return best._replace(bound=goal)
    low, high = best.bound, best.value
    while high > low * (1 + FINE) and task.in_time():
        middle = (low * high) ** 0.5 if low > 0 else high / 2
        if relaxed.refutes(middle, task.deadline):
            low = middle
        else:
            high = middle
    return best._replace(bound=low)
