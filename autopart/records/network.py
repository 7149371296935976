"""A node's network: its rails, the bandwidth inside it, and the latencies of collectives.

A rail is a network adapter that some GPUs of each node share. A collective over many GPUs of a node
uses all their rails at once. autopart/cost/collectives.py has the formulas. Bandwidths are bytes
per second in one direction, latencies seconds.

The defaults are fitted by `scripts/measure_collectives.py`, or NCCL's own (src/graph/tuning.cc).
"""

import math
from typing import Annotated

import msgspec

from autopart.errors import ClusterError
from autopart.text import counted
from autopart.units import LEAST_BANDWIDTH, MOST_BANDWIDTH, Seconds

MOST_RAILS_PER_GPU = 4
"""Most rails per GPU: AWS p5 has 32 adapters for 8 GPUs."""
MOST_RAILS = 32
"""Most rails on a node with at most 8 GPUs."""

Rate = Annotated[
    float,
    msgspec.Meta(ge=LEAST_BANDWIDTH, le=MOST_BANDWIDTH, description="bytes per second"),
]
Share = Annotated[float, msgspec.Meta(ge=1e-6, le=1.0)]


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network that collectives use, in place of the links between single ranks."""

    rails: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    """Network adapters per node that the node's GPUs share evenly."""
    rail_bandwidth: Rate
    """Bytes per second of one rail in one direction, as collectives reach it."""
    ring_bandwidth: Rate
    """Bytes per second of a ring inside a node: the bus bandwidth of an all-gather."""
    switch_bandwidth: Rate | None = None
    """Bus bandwidth of an all-reduce that the switch itself sums (NVLS); null without such a switch."""
    switch_ranks: Annotated[int, msgspec.Meta(ge=2, le=4096)] = 6
    """Fewest ranks on a node for which the switch sums."""
    start: Seconds = 1e-5
    """Seconds that each collective takes to start."""
    step: Seconds = 3.4e-6
    """Seconds per ring step inside a node (NCCL's ring over NVLink, protocol Simple)."""
    hop: Seconds = 1.4e-5
    """Seconds per step between nodes (NCCL's network latency, protocol Simple)."""
    trees: bool = True
    """Whether all-reduces between nodes may use trees. NCCL has rings and trees, gloo rings alone."""
    serial_steps: bool = False
    """Whether the steps of a ring over nodes run one after the other, each with a hop (gloo). NCCL's overlap."""
    ramp: Seconds = 7.5e-5
    """Seconds until a tree's pipeline is full."""
    fold: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.09
    """Part of the shorter phase of a tree that the longer one does not hide."""
    tree_efficiency: Share = 0.48
    """Bandwidth of a tree on more than two nodes, as a share of one on two nodes."""
    peer: Seconds = 7e-6
    """Seconds that an all-to-all spends per rank on another node."""
    all_to_all_efficiency: Share = 0.85
    """Share of the rails' bandwidth that an all-to-all reaches."""
    off_rail: Share = 1.0
    """Bandwidth of a send between GPUs on different rails, as a share of one on the same rail."""
    slowdown: Annotated[float, msgspec.Meta(ge=0.0, le=10.0)] = 0.15
    """Share by which compute takes longer while a gradient sync runs beside it."""


def check_network(network: Network, gpus_per_node: int, where: str) -> None:
    """Raise ClusterError where a node of so many GPUs cannot have the network."""
    most = max(MOST_RAILS, MOST_RAILS_PER_GPU * gpus_per_node)
    if network.rails > most:
        raise ClusterError(
            f"{where}: network.rails is {network.rails}, but a node of {counted(gpus_per_node, 'GPU')} has at "
            f"most {most}; rails counts the network adapters of one node"
        )
    if network.switch_bandwidth is not None and network.switch_ranks > gpus_per_node > 1:
        raise ClusterError(
            f"{where}: network.switch_ranks is {network.switch_ranks}, but a node has "
            f"{counted(gpus_per_node, 'GPU')}; leave switch_bandwidth out where no switch sums"
        )


def with_gpus(network: Network | None, before: int, after: int) -> Network | None:
    """The network of a node with `after` of its `before` GPUs: each GPU keeps its share of the rails."""
    if network is None or before == after:
        return network
    whole = math.gcd(network.rails, before)
    # Rails that so many GPUs share stay whole where they can.
    per_group, group = network.rails // whole, before // whole
    if after % group == 0:
        rails, rate = per_group * (after // group), network.rail_bandwidth
    else:
        rails, rate = 1, network.rails * network.rail_bandwidth * after / before
    switch = network.switch_bandwidth if after >= network.switch_ranks else None
    return msgspec.structs.replace(
        network, rails=rails, rail_bandwidth=rate, switch_bandwidth=switch
    )
