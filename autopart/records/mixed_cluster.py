"""Clusters with several kinds of known GPUs."""

from collections.abc import Sequence

import msgspec

from autopart.errors import ClusterError
from autopart.records.cluster import Cluster, GpuGroup, HostLink, cluster_of
from autopart.records.gpu import Gpu
from autopart.records.known_gpus import find_gpu


def mixed_cluster(
    kinds: Sequence[tuple[str, int]], reference: str, dtype: str, nodes: int = 1
) -> Cluster:
    """A cluster with several kinds (name, count) of known GPUs, in rank order.

    A GPU's pace is its published peak rate in `dtype` times its assumed compute efficiency. Its
    speed is its pace divided by the pace of the `reference` GPU. The slowest kind gives the links.
    Raises ClusterError where a GPU is unknown or has no rate for `dtype`.
    """
    gpus = sum(count for _, count in kinds)
    known = [(find_gpu(name), count) for name, count in kinds]
    clusters = [cluster_of(gpu.name, gpus, nodes) for gpu, _ in known]
    pace = _pace(find_gpu(reference), dtype)
    groups = tuple(
        GpuGroup(
            count=count,
            name=gpu.name,
            memory_bytes=gpu.memory_bytes,
            speed=_pace(gpu, dtype) / pace,
        )
        for gpu, count in known
    )
    return msgspec.structs.replace(
        min(clusters, key=lambda one: one.intra_node.bandwidth),
        gpu="+".join(dict.fromkeys(gpu.name for gpu, _ in known)),
        memory_bytes=min(group.memory_bytes for group in groups),
        reserve_bytes=max(one.reserve_bytes for one in clusters),
        host_link=min((one.host_link for one in clusters if one.host_link), key=_by_bandwidth),
        action_overhead=max(one.action_overhead for one in clusters),
        sends_overlap=all(one.sends_overlap for one in clusters),
        gpus=groups,
        source="; ".join(dict.fromkeys(one.source for one in clusters))
        + f"; speeds from peak {dtype} rates relative to {reference}",
    )


def _by_bandwidth(link: HostLink) -> tuple[bool, float]:
    """A sort key: copies that do not overlap come first, then links with less bandwidth."""
    return link.overlaps, link.bandwidth


def _pace(gpu: Gpu, dtype: str) -> float:
    """Operations per second that the GPU is assumed to reach in `dtype`."""
    if dtype not in gpu.flops:
        raise ClusterError(
            f"{gpu.name}: no rate is known for {dtype}; known: {', '.join(gpu.flops)}; "
            "write the speeds into a cluster file"
        )
    return gpu.flops[dtype] * gpu.compute_efficiency
