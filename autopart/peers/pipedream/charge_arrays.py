"""PipeDream's charges (charges.py) as the arrays and matrices that the searches ask for.

Two levels as one (`relaxed_costs`): a stage on r replicas per node and q nodes is one choice with r
q machines. Its busy time is (1) within (1). It receives over the faster link, and sends for free.
Every plan in two levels is such a plan, at no higher cost: a relaxation.
"""

import numpy as np

from autopart.peers.pipedream.charged_layers import Floats
from autopart.peers.pipedream.charges import (
    Network,
    busy_time,
    replica_counts,
    stashed_minibatches,
    transfer_time,
)
from autopart.peers.pipedream.downset_costs import DownsetCosts, ReplicaChoice, StashMemory
from autopart.peers.pipedream.downset_sums import DownsetSums
from autopart.peers.pipedream.two_levels_matrices import NodeMatrices
from autopart.solvers.fewest_ranks import Flags
from autopart.solvers.fewest_ranks_matrices import BytesMatrices, SecondsMatrices


def level_costs(sums: DownsetSums, network: Network, *, all_sends: bool) -> DownsetCosts:
    """Stage costs on the inner level, or on the only one."""
    bandwidth = network.bandwidths[0]
    choices: list[ReplicaChoice] = []
    for replicas in replica_counts(network, 0):
        key = busy_time(sums.compute, sums.parameters, replicas, bandwidth)
        receive, send = _transfers(sums, network, 0, replicas)
        first_send = send if all_sends else np.zeros_like(send)
        choices.append(ReplicaChoice(replicas, key, key, receive, send, first_send))
    return DownsetCosts(choices, sums.compute, _memory(sums, network))


def _transfers(
    sums: DownsetSums, network: Network, level: int, replicas: int
) -> tuple[Floats, Floats]:
    """Seconds to receive and to send at each downset; the last downset sends nothing."""
    receive = transfer_time(sums.cut, replicas, network.bandwidths[level], network.compression)
    send = receive.copy()
    send[-1] = 0.0
    return receive, send


def _memory(sums: DownsetSums, network: Network) -> StashMemory | None:
    """The memory key, or None without a memory limit."""
    if network.memory_bytes is None:
        return None
    return StashMemory(sums.parameters + sums.outputs, network.memory_bytes)


def relaxed_costs(sums: DownsetSums, network: Network) -> DownsetCosts:
    """Stage costs with two levels as one: lower bounds on the real costs."""
    inner_bandwidth, outer_bandwidth = network.bandwidths
    pairs = [
        (inner, outer)
        for inner in replica_counts(network, 0)
        for outer in replica_counts(network, 1)
    ]
    choices: list[ReplicaChoice] = []
    for inner, outer in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        time = busy_time(sums.compute, sums.parameters, inner, inner_bandwidth)
        sharing = network.machines[0]
        key = busy_time(time, sums.parameters, outer, outer_bandwidth, sharing)
        fastest = np.minimum(
            transfer_time(sums.cut, inner, inner_bandwidth, network.compression) / outer,
            transfer_time(sums.cut, outer, outer_bandwidth, network.compression),
        )
        free = np.zeros_like(key)
        choices.append(ReplicaChoice(inner * outer, key, key, fastest, free, free))
    return DownsetCosts(choices, sums.compute)


def least_outer_costs(sums: DownsetSums, network: Network, *, all_sends: bool) -> DownsetCosts:
    """Lower bounds on stage costs on the outer level: each inner pipeline divides its compute
    evenly."""
    share = sums.compute / network.machines[0]
    bandwidth = network.bandwidths[1]
    choices: list[ReplicaChoice] = []
    for replicas in replica_counts(network, 1):
        key = busy_time(share, sums.parameters, replicas, bandwidth)
        first = busy_time(share, sums.parameters, replicas, bandwidth, network.machines[0])
        receive, send = _transfers(sums, network, 1, replicas)
        first_send = send if all_sends else np.zeros_like(send)
        choices.append(ReplicaChoice(replicas, key, first, receive, send, first_send))
    return DownsetCosts(choices, share)


def node_matrices(
    sums: DownsetSums, nested: Flags, network: Network, *, all_sends: bool
) -> NodeMatrices:
    """Stage seconds within a node for all pairs of downsets; `nested` at [start, end]."""
    counts = list(replica_counts(network, 0))
    first: list[Floats] = []
    others: list[Floats] = []
    first_send: list[Floats] = []
    for replicas in counts:
        key = busy_time(sums.compute, sums.parameters, replicas, network.bandwidths[0])
        busy = np.where(nested, key - key[:, None], np.inf)
        receive, send = _transfers(sums, network, 0, replicas)
        first.append(busy)
        others.append(np.maximum(busy, np.maximum(receive[:, None], send)))
        first_send.append(send if all_sends else np.zeros_like(send))
    memory = _memory(sums, network)
    if memory is None:
        return NodeMatrices(counts, first, first_send, others)
    kept = memory.key - memory.key[:, None]

    def fits(choice: int, later: int) -> Flags:
        return stashed_minibatches(later, counts[choice]) * kept <= memory.limit

    return NodeMatrices(counts, first, first_send, others, fits)


def outer_matrices(
    pipelines: Floats, sums: DownsetSums, network: Network, *, all_sends: bool
) -> SecondsMatrices:
    """Stage seconds on the outer level, from the bottlenecks `pipelines` on one node at [start,
    end]."""
    counts = list(replica_counts(network, 1))
    bandwidth = network.bandwidths[1]
    parameters = sums.parameters - sums.parameters[:, None]
    seconds: list[Floats] = []
    for replicas in counts:
        receive, send = _transfers(sums, network, 1, replicas)
        busy = busy_time(pipelines, parameters, replicas, bandwidth)
        busy = np.maximum(busy, np.maximum(receive[:, None], send))
        # Row 0 is the first stage: it shares its sync, receives nothing, and sends for free by
        # default.
        busy[0] = busy_time(pipelines[0], parameters[0], replicas, bandwidth, network.machines[0])
        if all_sends:
            busy[0] = np.maximum(busy[0], send)
        seconds.append(busy)
    work = sums.compute / network.machines[0]
    if network.memory_bytes is None:
        return SecondsMatrices(counts, seconds, work)

    def in_flight(choice: int, later: int) -> int:
        return stashed_minibatches(later, counts[choice])

    kept = sums.parameters + sums.outputs
    stash = kept - kept[:, None]
    memory = BytesMatrices([0.0] * len(counts), stash, in_flight, network.memory_bytes)
    return SecondsMatrices(counts, seconds, work, memory)


def within_node(costs: DownsetCosts, downsets: list[int]) -> DownsetCosts:
    """Costs on the inner level between two downsets, for pipelines inside one node.

    `downsets` are the places of both downsets and of all downsets between them. The last stage
    sends nothing within its node.
    """
    choices: list[ReplicaChoice] = []
    for choice in costs.choices:
        key, first, receive, send, first_send = (
            array[downsets].copy()
            for array in (choice.key, choice.first, choice.receive, choice.send, choice.first_send)
        )
        first_send[-1] = 0.0
        choices.append(ReplicaChoice(choice.machines, key, first, receive, send, first_send))
    memory = costs.memory
    if memory is not None:
        memory = StashMemory(memory.key[downsets], memory.limit)
    return DownsetCosts(choices, costs.work[downsets] - costs.work[downsets[0]], memory)
