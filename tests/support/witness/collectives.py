"""Seconds of syncs on a cluster with a network record, written from docs/cost-model.md."""

import random
from collections.abc import Sequence

from autopart.records.cluster import Cluster, Link
from autopart.records.measured_collectives import MeasuredCollective, MeasuredCollectives
from autopart.records.network import Network


def _per_gpu(cluster: Cluster, network: Network) -> float:
    return network.rails * network.rail_bandwidth / cluster.gpus_per_node


def all_reduce_seconds(cluster: Cluster, nodes: Sequence[int], size: float) -> float:
    """The faster of two turns around the ring, and up and down a tree."""
    assert cluster.network is not None
    network, least = cluster.network, _fewest(nodes)
    ways = [network.start + _turns(cluster, nodes, size, 2)]
    ranks_up, num_nodes = least, len(set(nodes))
    nvls = bool(network.switch_bandwidth) and ranks_up >= network.switch_ranks
    if network.trees if num_nodes > 1 else nvls:
        rate = (network.switch_bandwidth or 0.0) if nvls else 0.8 * network.ring_bandwidth
        within = size * (2 - 2 / ranks_up) / rate
        levels = 0
        while 2**levels < num_nodes:
            levels += 1
        through_rails = min(levels, 1) + (num_nodes > 2)
        between = through_rails * size / (ranks_up * _per_gpu(cluster, network))
        slow, fast = sorted([within, between], reverse=True)
        moved = slow + network.fold * fast
        if num_nodes > 2:
            moved = moved / network.tree_efficiency
        filling = network.ramp if num_nodes == 1 else 2.5 * network.ramp
        ways.append(network.start + filling + 2 * levels * network.hop + moved)
    return min(ways)


def sharded_seconds(
    cluster: Cluster, nodes: Sequence[int], gradients: float, weights: float
) -> float:
    """A reduce-scatter of gradients, then an all-gather of weights."""
    assert cluster.network is not None
    return 2 * cluster.network.start + sum(
        _turns(cluster, nodes, size, 1) for size in (gradients, weights)
    )


def ring_turn_seconds(cluster: Cluster, nodes: Sequence[int], size: float) -> float:
    """One turn around a ring: a reduce-scatter or an all-gather, without its start."""
    return _turns(cluster, nodes, size, 1)


def exchange_seconds(cluster: Cluster, nodes: Sequence[int], size: float) -> float:
    """An all-to-all: each rank sends a part to every other one, those of other nodes over its own share of rails."""
    network, part = cluster.network, size / len(nodes)
    assert network is not None
    beside = _fewest(nodes)
    away = len(nodes) - beside
    latency = network.start + away * network.peer
    if len(set(nodes)) > 1:
        latency += network.hop
    inside = (beside - 1) * part / network.ring_bandwidth
    outside = away * part / _per_gpu(cluster, network) / network.all_to_all_efficiency
    return latency + (inside if inside > outside else outside)


def _turns(cluster: Cluster, nodes: Sequence[int], size: float, turns: int) -> float:
    """Turns around a ring that goes through all ranks of one node after the other."""
    network, used = cluster.network, set(nodes)
    assert network is not None
    rates: list[float] = []
    if len(used) < len(nodes):
        rates.append(network.ring_bandwidth)
    if len(used) > 1:
        rates.append(_fewest(nodes) * _per_gpu(cluster, network))
    if network.serial_steps and len(used) > 1:
        latency = (len(nodes) - 1) * max(network.hop, network.step)
    else:
        latency = (len(nodes) - len(used)) * network.step + (len(used) - 1) * network.hop
    return turns * (latency + size * (1 - 1 / len(nodes)) / min(rates))


def _fewest(nodes: Sequence[int]) -> int:
    return min(list(nodes).count(node) for node in set(nodes))


def links_of(cluster: Cluster) -> dict[str, Link]:
    """The links for sends: within a node, over one rail, and over two rails."""
    across, network = cluster.inter_node, cluster.network
    if network is None:
        return {"intra": cluster.intra_node, "inter": across}
    rate = min(across.bandwidth, _per_gpu(cluster, network))
    return {
        "intra": cluster.intra_node,
        "inter": Link(bandwidth=rate, latency=across.latency),
        "off rail": Link(bandwidth=rate * network.off_rail, latency=across.latency),
    }


def ring_seconds(link: Link, size: float, ranks: int) -> float:
    """An all-reduce over one link, on a cluster without a network record."""
    steps = 2 * (ranks - 1)
    return steps * (link.latency + size / ranks / link.bandwidth) * link.all_reduce_factor


def measured_seconds(measured: MeasuredCollectives, kind: str, size: float, ranks: int) -> float:
    """A collective as a probe measured it among some ranks: each step of a ring takes as long among others."""
    line = {
        "all_reduce": measured.all_reduce,
        "all_gather": measured.all_gather,
        "reduce_scatter": measured.reduce_scatter,
        "all_to_all": measured.all_to_all,
    }[kind]
    step = line.latency / (measured.ranks - 1)
    # Among p ranks each one sends (p - 1) / p of its bytes.
    sent = size * (ranks - 1) / ranks
    sent_then = (measured.ranks - 1) / measured.ranks
    return step * (ranks - 1) + sent / sent_then / line.bandwidth


def draw_measured(rng: random.Random) -> MeasuredCollectives:
    """Lines that no ring has."""
    lines = (
        MeasuredCollective(
            latency=rng.choice([0.0, 0.03]), bandwidth=rng.choice([3.0, 40.0, 500.0])
        )
        for _ in range(4)
    )
    return MeasuredCollectives(
        ranks=rng.choice([2, 3, 4]),
        all_reduce=next(lines),
        all_gather=next(lines),
        reduce_scatter=next(lines),
        all_to_all=next(lines),
    )
