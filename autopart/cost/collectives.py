"""Seconds of collectives and sends on a network, by the shape of the group of ranks.

Symbols   n ranks on k nodes, at least g of them on each;  G GPUs per node;  S bytes
          out(g) = rails x rail_bandwidth x g / G      the group's share of a node's rails

    ring(c) = start + c latency + c (n - 1)/n S / min(ring_bandwidth, out(g))
    latency = (n - k) step + (k - 1) hop, or (n - 1) max(step, hop) on several nodes with serial steps
    in      = 2 (g - 1)/g S / (switch_bandwidth, or 0.8 ring_bandwidth where no switch sums)
    over    = S / out(g) on two nodes, 2 S / out(g) on more
    tree    = start + (1 or 2.5) ramp + 2 ceil(log2 k) hop
              + (max(in, over) + fold min(in, over)) / (1, or tree_efficiency on more than two nodes)

    reduce-scatter, all-gather    ring(1)
    all-reduce                    the faster of ring(2) and tree; tree needs a switch, or several nodes
                                  and a transport that has trees
    all-to-all                    start + (n - g) peer + hop
                                  + max((g - 1)/n S / ring_bandwidth, (n - g)/n S / (efficiency out(1)))

A ring uses `ring_bandwidth` only where a node has several of its ranks, and rails only over nodes.
Groups on other GPUs of the same nodes have their own share of the rails. So several groups at once
take no longer.

Each formula is affine in S for one shape. So every price is the least of a few affine functions: it
is nondecreasing and concave in S. The forms follow NCCL (src/graph/tuning.cc). docs/cost-model.md
has the sources, and docs/benchmarks.md the errors.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from autopart.records.cluster import Cluster
from autopart.records.network import Network
from autopart.units import Q

INSIDE_TREE = 0.8
"""Share of the ring's bandwidth that a tree inside a node reaches (0.92 x 0.85 in NCCL)."""

CollectiveName = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "sharded_sync"]
"""`sharded_sync` is ZeRO-1's: a reduce-scatter, then an all-gather of as many bytes."""


class GroupShape(NamedTuple):
    """The shape of a group of ranks."""

    ranks: int
    nodes: int
    per_node: int
    """Fewest ranks on one of these nodes."""


class Affine(NamedTuple):
    """Seconds that are affine in the bytes."""

    start: float
    """Seconds without any bytes."""
    per_byte: float
    """Seconds per byte."""


class Fastest(NamedTuple):
    """The price of one collective: the least of a few affine functions of its bytes."""

    pieces: tuple[Affine, ...]

    def seconds(self, num_bytes: Q) -> Q:
        """Seconds for so many bytes on each rank."""
        times = [piece.start + num_bytes * piece.per_byte for piece in self.pieces]
        # An array has one number of bytes for each stage; a minimum of each is taken.
        least = np.minimum if isinstance(num_bytes, np.ndarray) else min
        return functools.reduce(least, times)  # pyright: ignore[reportReturnType, reportUnknownVariableType, reportArgumentType]

    def is_never_above(self, other: "Fastest") -> bool:
        """Whether the price is proven to be at most the other one, for any bytes.

        Each piece of the other one must lie above some piece of this one.
        """
        return all(
            any(own.start <= piece.start and own.per_byte <= piece.per_byte for own in self.pieces)
            for piece in other.pieces
        )


NOTHING = Fastest((Affine(0.0, 0.0),))
"""The price for a single rank."""


class AnyPlacement(Network, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network of a pseudo-cluster, where each group of ranks has the least price of all.

    Bounds over assignments of ranks (autopart/bounds/rank_assignments.py) have it. Ranks on one node
    of the pseudo-cluster may lie anyhow on the real nodes. Ranks on several nodes lie on two or more.
    """

    real_nodes: int
    """Nodes of the real cluster."""
    real_gpus_per_node: int
    """GPUs on each of them."""


class Fabric(NamedTuple):
    """The network of a cluster's nodes."""

    network: Network
    gpus_per_node: int
    num_nodes: int

    def share(self, gpus: int) -> float:
        """Bytes per second that so many GPUs of a node have over its rails."""
        return self.network.rails * self.network.rail_bandwidth * gpus / self.gpus_per_node


def fabric_of(cluster: Cluster) -> Fabric | None:
    """The fabric of a cluster, or of the real one behind a pseudo-cluster; None without a network."""
    network = cluster.network
    if network is None:
        return None
    if isinstance(network, AnyPlacement):
        return Fabric(network, network.real_gpus_per_node, network.real_nodes)
    return Fabric(network, cluster.gpus_per_node, cluster.num_nodes)


def shape_of(nodes: Sequence[int]) -> GroupShape:
    """The shape of a group whose ranks lie on these nodes, one entry per rank."""
    counts = Counter(nodes)
    return GroupShape(len(nodes), len(counts), min(counts.values()))


@functools.lru_cache(maxsize=4096)
def price_of(fabric: Fabric, collective: CollectiveName, group: GroupShape) -> Fastest:
    """The price of a collective among the ranks of one group."""
    if group.ranks == 1:
        return NOTHING
    match collective:
        case "all_reduce":
            return _least([_ring(fabric, group, 2), *_tree(fabric, group)])
        case "all_to_all":
            return Fastest((_all_to_all(fabric, group),))
        case "sharded_sync":
            once = _ring(fabric, group, 1)
            return Fastest((Affine(2 * once.start, 2 * once.per_byte),))
        case _:
            return Fastest((_ring(fabric, group, 1),))


@functools.lru_cache(maxsize=4096)
def least_price(
    fabric: Fabric, collective: CollectiveName, counts: range, fewest_nodes: int
) -> Fastest:
    """The least price among all groups with any of `counts` ranks.

    They lie anyhow on at least `fewest_nodes` nodes. Neither more ranks on the same
    nodes nor another spread is always slower. So each shape is tried.
    """
    pieces = [piece for n in counts for piece in _least_pieces(fabric, collective, n, fewest_nodes)]
    if not pieces:
        # No assignment is so. The most compact ones give a bound all the same.
        pieces = [piece for n in counts for piece in _least_pieces(fabric, collective, n, 1)]
    # Where the nodes have no room for so many ranks, nothing is said.
    return _least(pieces) if pieces else NOTHING


@functools.lru_cache(maxsize=1 << 16)
def _least_pieces(
    fabric: Fabric, collective: CollectiveName, ranks: int, fewest_nodes: int
) -> tuple[Affine, ...]:
    """The least price among all groups of so many ranks on at least `fewest_nodes` nodes; empty without any."""
    groups = _groups(fabric, ranks, fewest_nodes)
    return _least(p for one in groups for p in price_of(fabric, collective, one).pieces).pieces


def _groups(fabric: Fabric, ranks: int, fewest_nodes: int) -> Iterator[GroupShape]:
    """Every shape of so many ranks on at least `fewest_nodes` nodes."""
    room, num_nodes = fabric.gpus_per_node, fabric.num_nodes
    for nodes in range(max(fewest_nodes, math.ceil(ranks / room)), min(ranks, num_nodes) + 1):
        for fewest in range(1, ranks // nodes + 1):
            # The other nodes must hold the rest; a node alone has all ranks.
            if ranks - fewest <= (nodes - 1) * room:
                yield GroupShape(ranks, nodes, fewest)


def _ring(fabric: Fabric, group: GroupShape, turns: int) -> Affine:
    network, (n, k, g) = fabric.network, group
    bandwidth = math.inf
    if g > 1 or k < n:
        bandwidth = network.ring_bandwidth
    if k > 1:
        bandwidth = min(bandwidth, fabric.share(g))
    latency = (n - k) * network.step + (k - 1) * network.hop
    if k > 1 and network.serial_steps:
        latency = (n - 1) * max(network.step, network.hop)
    return Affine(network.start + turns * latency, turns * (n - 1) / n / bandwidth)


def _tree(fabric: Fabric, group: GroupShape) -> Iterator[Affine]:
    """The tree's seconds, where there is one."""
    network, (_, k, g) = fabric.network, group
    switched = network.switch_bandwidth is not None and g >= network.switch_ranks
    if not (switched if k == 1 else network.trees):
        return
    inside_bandwidth = INSIDE_TREE * network.ring_bandwidth
    if network.switch_bandwidth is not None and switched:
        inside_bandwidth = network.switch_bandwidth
    inside = 2 * (g - 1) / g / inside_bandwidth
    over = 0.0 if k == 1 else (1 if k == 2 else 2) / fabric.share(g)
    # The two phases overlap, except for a part of the shorter one.
    per_byte = max(inside, over) + network.fold * min(inside, over)
    if k > 2:
        per_byte /= network.tree_efficiency
    start = network.start + (1.0 if k == 1 else 2.5) * network.ramp
    yield Affine(start + 2 * math.ceil(math.log2(k)) * network.hop, per_byte)


def _all_to_all(fabric: Fabric, group: GroupShape) -> Affine:
    network, (n, k, g) = fabric.network, group
    over = (n - g) / n / (network.all_to_all_efficiency * fabric.share(1))
    start = network.start + (n - g) * network.peer + (network.hop if k > 1 else 0.0)
    return Affine(start, max((g - 1) / n / network.ring_bandwidth, over))


def _least(pieces: Iterable[Affine]) -> Fastest:
    """The least of affine functions, without those that are nowhere the least."""
    kept: list[Affine] = []
    # Step 1: by rising start, each next one must have a smaller slope.
    for piece in sorted(set(pieces)):
        if kept and piece.per_byte >= kept[-1].per_byte:
            continue
        # Step 2: drop the last one where the new one is smaller before the last one is the least.
        while len(kept) > 1 and _crossing(kept[-2], piece) <= _crossing(kept[-2], kept[-1]):
            kept.pop()
        kept.append(piece)
    return Fastest(tuple(kept))


def _crossing(first: Affine, then: Affine) -> float:
    """Bytes from which on `then` is smaller."""
    return (then.start - first.start) / (first.per_byte - then.per_byte)
