"""PipeDream's charges (loads/pipedream.py) as the arrays and matrices that the solvers ask for.

Two levels as one (`relaxed_costs`): a stage on r replicas in a node and q nodes is one choice of r q
machines, whose busy time is (1) within (1); what it receives comes over whichever link is faster, and
its sends are free. Every plan of two levels is a plan of this one that costs no more.
"""

import numpy as np

from autopart.loads.pipedream import (
    Floats,
    Network,
    Sums,
    busy_time,
    replica_counts,
    transfer_time,
)
from autopart.solvers.replication.downsets import Choice, Costs, Memory, stashes
from autopart.solvers.replication.dual import Flags
from autopart.solvers.replication.matrices import MatrixLoads, MatrixMemory
from autopart.solvers.replication.two_levels import NodeLoads


def level_costs(sums: Sums, network: Network, *, all_sends: bool, level: int = 0) -> Costs:
    """What stages of the inner level, or of the only one, cost."""
    bandwidth = network.bandwidths[level]
    choices: list[Choice] = []
    for replicas in replica_counts(network, level):
        key = busy_time(sums.compute, sums.parameters, replicas, bandwidth)
        receive, send = _transfers(sums, network, level, replicas)
        first_send = send if all_sends else np.zeros_like(send)
        choices.append(Choice(replicas, key, key, receive, send, first_send))
    return Costs(choices, sums.compute, _memory(sums, network))


def _transfers(sums: Sums, network: Network, level: int, replicas: int) -> tuple[Floats, Floats]:
    receive = transfer_time(sums.cut, replicas, network.bandwidths[level], network.compression)
    send = receive.copy()
    send[-1] = 0.0
    return receive, send


def _memory(sums: Sums, network: Network) -> Memory | None:
    if network.memory_bytes is None:
        return None
    return Memory(sums.parameters + sums.outputs, network.memory_bytes)


def relaxed_costs(sums: Sums, network: Network) -> Costs:
    """Two levels as one, with lower costs."""
    inner_bandwidth, outer_bandwidth = network.bandwidths
    pairs = [
        (inner, outer)
        for inner in replica_counts(network, 0)
        for outer in replica_counts(network, 1)
    ]
    choices: list[Choice] = []
    for inner, outer in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        time = busy_time(sums.compute, sums.parameters, inner, inner_bandwidth)
        sharing = network.machines[0]
        key = busy_time(time, sums.parameters, outer, outer_bandwidth, sharing)
        fastest = np.minimum(
            transfer_time(sums.cut, inner, inner_bandwidth, network.compression) / outer,
            transfer_time(sums.cut, outer, outer_bandwidth, network.compression),
        )
        free = np.zeros_like(key)
        choices.append(Choice(inner * outer, key, key, fastest, free, free))
    return Costs(choices, sums.compute)


def least_outer_costs(sums: Sums, network: Network, *, all_sends: bool) -> Costs:
    """What stages of the outer level cost at least: their pipelines as good as they could be."""
    share = sums.compute / network.machines[0]
    bandwidth = network.bandwidths[1]
    choices: list[Choice] = []
    for replicas in replica_counts(network, 1):
        key = busy_time(share, sums.parameters, replicas, bandwidth)
        first = busy_time(share, sums.parameters, replicas, bandwidth, network.machines[0])
        receive, send = _transfers(sums, network, 1, replicas)
        first_send = send if all_sends else np.zeros_like(send)
        choices.append(Choice(replicas, key, first, receive, send, first_send))
    return Costs(choices, share)


def node_loads(sums: Sums, nested: Flags, network: Network, *, all_sends: bool) -> NodeLoads:
    """What stages within a node cost, for all pairs of states; `nested` at [start, end]."""
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
        return NodeLoads(counts, first, first_send, others)
    kept = memory.key - memory.key[:, None]

    def fits(choice: int, later: int) -> Flags:
        return stashes(later, counts[choice]) * kept <= memory.limit

    return NodeLoads(counts, first, first_send, others, fits)


def outer_loads(pipelines: Floats, sums: Sums, network: Network, *, all_sends: bool) -> MatrixLoads:
    """What stages of the outer level cost, given the pipelines on one node at [start, end]."""
    counts = list(replica_counts(network, 1))
    bandwidth = network.bandwidths[1]
    parameters = sums.parameters - sums.parameters[:, None]
    loads: list[Floats] = []
    for replicas in counts:
        receive, send = _transfers(sums, network, 1, replicas)
        load = busy_time(pipelines, parameters, replicas, bandwidth)
        load = np.maximum(load, np.maximum(receive[:, None], send))
        load[0] = busy_time(pipelines[0], parameters[0], replicas, bandwidth, network.machines[0])
        if all_sends:
            load[0] = np.maximum(load[0], send)
        loads.append(load)
    work = sums.compute / network.machines[0]
    if network.memory_bytes is None:
        return MatrixLoads(counts, loads, work)

    def held(choice: int, later: int) -> int:
        return stashes(later, counts[choice])

    kept = sums.parameters + sums.outputs
    stash = kept - kept[:, None]
    memory = MatrixMemory([0.0] * len(counts), stash, held, network.memory_bytes)
    return MatrixLoads(counts, loads, work, memory)


def within_node(costs: Costs, states: list[int]) -> Costs:
    """The costs of an inner level between two states, those two and all states between them given:
    a pipeline of one stage sends nothing within its node."""
    choices: list[Choice] = []
    for choice in costs.choices:
        key, first, receive, send, first_send = (
            array[states].copy()
            for array in (choice.key, choice.first, choice.receive, choice.send, choice.first_send)
        )
        first_send[-1] = 0.0
        choices.append(Choice(choice.machines, key, first, receive, send, first_send))
    memory = costs.memory
    if memory is not None:
        memory = Memory(memory.key[states], memory.limit)
    return Costs(choices, costs.work[states] - costs.work[states[0]], memory)
