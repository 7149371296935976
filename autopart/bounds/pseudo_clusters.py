"""Pseudo-clusters: nodes of their own for groups of ranks, where nothing costs more than anywhere else.

autopart/bounds/rank_assignments.py says which groups, and proves what the pseudo-cluster bounds.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from autopart.bounds.rank_groups import Cap
from autopart.cost.collectives import AnyPlacement
from autopart.cost.links import link_across
from autopart.records.cluster import Cluster, GpuGroup, Link, host_share


def links_are_ordered(cluster: Cluster) -> bool:
    """Whether no send and no sync within a node is slower than between nodes."""
    if cluster.num_nodes == 1:
        return True
    inside, across = cluster.intra_node, link_across(cluster)
    factors = inside.all_reduce_factor, across.all_reduce_factor
    sends = inside.bandwidth >= across.bandwidth and inside.latency <= across.latency
    if cluster.network is not None:
        # Syncs do not use these links.
        return sends
    return (
        sends
        and inside.latency * factors[0] <= across.latency * factors[1]
        and factors[0] / inside.bandwidth <= factors[1] / across.bandwidth
    )


def with_nodes(cluster: Cluster, num_nodes: int, room: int, *, ordered: bool) -> Cluster:
    """The cluster with so many nodes of `room` GPUs.

    Where links are not ordered, those within a node are at least as fast as both.
    """
    share, inside, across = host_share(cluster), cluster.intra_node, link_across(cluster)
    if not ordered:
        inside = Link(
            bandwidth=max(inside.bandwidth, across.bandwidth),
            latency=min(inside.latency, across.latency),
            all_reduce_factor=min(inside.all_reduce_factor, across.all_reduce_factor),
        )
    return msgspec.structs.replace(
        cluster,
        num_nodes=num_nodes,
        gpus_per_node=room,
        host_memory_bytes=None if share is None else share * room,
        intra_node=inside,
        inter_node=across,
        network=_any_placement(cluster),
    )


def without_nodes(cluster: Cluster) -> Cluster:
    """The cluster as far as a stage's bytes depend on it: the same for any nodes and links."""
    share, link = host_share(cluster), cluster.intra_node
    return msgspec.structs.replace(
        cluster,
        num_nodes=1,
        gpus_per_node=1,
        host_memory_bytes=share,
        intra_node=link,
        inter_node=link,
        network=None,
    )


def _any_placement(cluster: Cluster) -> AnyPlacement | None:
    """The network of a pseudo-cluster for a real one."""
    if cluster.network is None:
        return None
    fields: dict[str, Any] = msgspec.structs.asdict(cluster.network) | {"off_rail": 1.0}
    return AnyPlacement(
        **fields, real_nodes=cluster.num_nodes, real_gpus_per_node=cluster.gpus_per_node
    )


def is_no_slower(links: tuple[Link | None, Link | None]) -> bool:
    """Whether the first link takes no longer than the second one, for any send."""
    link, other = links
    if link is None or other is None:
        return link is None
    return link.bandwidth >= other.bandwidth and link.latency <= other.latency


def with_gpus(cluster: Cluster, gpus: Sequence[Cap]) -> Cluster:
    """The cluster with these GPUs, one per rank."""
    groups = tuple(
        GpuGroup(
            count=sum(1 for _ in own),
            name=cluster.gpu,
            memory_bytes=cap.memory_bytes,
            speed=cap.speed,
        )
        for cap, own in itertools.groupby(gpus)
    )
    return msgspec.structs.replace(
        cluster, gpus=groups, memory_bytes=min(cap.memory_bytes for cap in gpus)
    )
