"""Clusters: nodes of GPUs, the links between them, and what every rank can hold."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.errors import ClusterError
from autopart.files import encode, read_file, write_file
from autopart.gpus import Gpu, find_gpu
from autopart.units import Bytes, PositiveCount, Seconds

FORMAT = "autopart-cluster"
VERSION = 1

Bandwidth = Annotated[float, msgspec.Meta(gt=0.0, description="bytes a second")]

INTER_NODE_BANDWIDTH = 25e9
"""One 200 Gbit/s adapter a GPU, the smaller of the two usual ones (HDR InfiniBand, 25 GB/s)."""
INTRA_NODE_LATENCY = 10e-6
INTER_NODE_LATENCY = 20e-6
"""Order of magnitude of one NCCL point-to-point call; measure your own cluster's."""
HOST_LATENCY = 10e-6
"""Order of magnitude of starting one copy between a GPU and its host; measure your own."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one rank can send to another: `latency + bytes / bandwidth` seconds."""

    bandwidth: Bandwidth
    latency: Seconds = 0.0
    all_reduce_factor: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    """How many times as long as a ring of such sends an all-reduce over this link takes."""


class HostLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Between a rank and the memory of its node, one direction: `latency + bytes / bandwidth` seconds."""

    bandwidth: Bandwidth
    latency: Seconds = 0.0
    overlaps: bool = True
    """Whether copies run beside compute (GPU), or the rank waits for each (CPU)."""


class GpuGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPUs of one kind on consecutive ranks."""

    count: PositiveCount
    name: str
    memory_bytes: Bytes
    speed: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    """Relative to the profile's device: 0.5 takes twice its times."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes of GPUs; rank r sits on node r // gpus_per_node."""

    format: Literal["autopart-cluster"] = FORMAT
    version: Literal[1] = VERSION
    gpu: str
    num_nodes: PositiveCount
    gpus_per_node: PositiveCount
    memory_bytes: Bytes
    """Memory of one GPU (or of one process, on a CPU), of the smallest where `gpus` differ."""
    reserve_bytes: Bytes = 0
    """The part of `memory_bytes` that the framework holds for itself."""
    intra_node: Link
    inter_node: Link
    host_link: HostLink | None = None
    """Of each rank; None where nothing is known of it, and so nothing can be offloaded."""
    host_memory_bytes: Bytes | None = None
    """Memory of one node for what its ranks offload; None where it has room for all of it."""
    action_overhead: Seconds = 0.0
    """Fixed cost of one action of the executor, beside the layers' own time."""
    compute_slowdown: Annotated[float, msgspec.Meta(ge=1.0)] = 1.0
    """How much longer a rank computes while the others of its node compute too."""
    sends_overlap: bool = True
    """Whether a send runs beside compute (GPU) or keeps both ranks busy (gloo on a CPU)."""
    gpus: tuple[GpuGroup, ...] = ()
    """Where GPUs differ, all of them in the order of the ranks; empty where all are alike."""
    source: str = ""
    """Where the numbers come from."""


def num_gpus(cluster: Cluster) -> int:
    """All GPUs of the cluster."""
    return cluster.num_nodes * cluster.gpus_per_node


def check_cluster(cluster: Cluster, where: str = "cluster") -> None:
    """Raise ClusterError where the groups of different GPUs contradict the other figures."""
    if not cluster.gpus:
        return
    listed = sum(group.count for group in cluster.gpus)
    if listed != num_gpus(cluster):
        raise ClusterError(
            f"{where}: gpus lists {listed} GPUs, but {cluster.num_nodes} nodes of "
            f"{cluster.gpus_per_node} are {num_gpus(cluster)}; the counts must add up to that"
        )
    least = min(group.memory_bytes for group in cluster.gpus)
    if cluster.memory_bytes != least:
        raise ClusterError(
            f"{where}: memory_bytes is {cluster.memory_bytes}, but the smallest of gpus has "
            f"{least}; write {least}"
        )


@functools.lru_cache(maxsize=64)
def _by_rank(gpus: tuple[GpuGroup, ...]) -> tuple[int, ...]:
    """For each rank its group."""
    return tuple(at for at, group in enumerate(gpus) for _ in range(group.count))


def group_of(cluster: Cluster, rank: int) -> int:
    """Which of `gpus` a rank belongs to; 0 where all GPUs are alike."""
    return _by_rank(cluster.gpus)[rank] if cluster.gpus else 0


def slowest_speed(cluster: Cluster, ranks: Iterable[int]) -> float:
    """The speed of the slowest of `ranks` while all ranks compute, relative to the profile's device
    alone."""
    speeds = (cluster.gpus[group_of(cluster, rank)].speed for rank in ranks if cluster.gpus)
    return min(speeds, default=1.0) / cluster.compute_slowdown


def fastest_speed(cluster: Cluster) -> float:
    """The speed of the fastest GPU while all ranks compute, relative to the profile's device alone."""
    return max((group.speed for group in cluster.gpus), default=1.0) / cluster.compute_slowdown


def smallest_memory(cluster: Cluster, ranks: Iterable[int]) -> int:
    """Bytes of the smallest GPU of `ranks`."""
    if not cluster.gpus:
        return cluster.memory_bytes
    return min(cluster.gpus[group_of(cluster, rank)].memory_bytes for rank in ranks)


def largest_memory(cluster: Cluster) -> int:
    """Bytes of the largest GPU."""
    return max((group.memory_bytes for group in cluster.gpus), default=cluster.memory_bytes)


def host_share(cluster: Cluster) -> int | None:
    """Bytes on its node for what one rank offloads; None where there is room for all."""
    whole = cluster.host_memory_bytes
    return None if whole is None else whole // cluster.gpus_per_node


def link_between(cluster: Cluster, rank: int, other: int) -> Link:
    """The link from one rank to another, which must differ."""
    same_node = rank // cluster.gpus_per_node == other // cluster.gpus_per_node
    return cluster.intra_node if same_node else cluster.inter_node


def slowest_link(cluster: Cluster, ranks: tuple[int, ...]) -> Link:
    """The link that bounds a ring over `ranks`."""
    nodes = {rank // cluster.gpus_per_node for rank in ranks}
    return cluster.intra_node if len(nodes) == 1 else cluster.inter_node


def cluster_of(gpu: str, gpus: int, nodes: int = 1, gpus_per_node: int | None = None) -> Cluster:
    """A cluster of `gpus` GPUs in all on `nodes` equal nodes, with the GPU's published figures.

    Raises ClusterError where the counts contradict each other or the GPU is unknown.
    """
    per_node = gpus_on_each_node(gpus, nodes, gpus_per_node)
    known = find_gpu(gpu)
    return Cluster(
        gpu=known.name,
        num_nodes=nodes,
        gpus_per_node=per_node,
        memory_bytes=known.memory_bytes,
        reserve_bytes=known.reserve_bytes,
        intra_node=Link(bandwidth=known.link_bandwidth, latency=INTRA_NODE_LATENCY),
        inter_node=Link(
            bandwidth=min(INTER_NODE_BANDWIDTH, known.link_bandwidth), latency=INTER_NODE_LATENCY
        ),
        host_link=HostLink(
            bandwidth=known.host_bandwidth,
            latency=HOST_LATENCY,
            overlaps=known.sends_overlap,
        ),
        action_overhead=known.action_overhead,
        sends_overlap=known.sends_overlap,
        source=_source(known),
    )


def mixed_cluster(
    kinds: Sequence[tuple[str, int]], reference: str, dtype: str, nodes: int = 1
) -> Cluster:
    """A cluster of known GPUs of several kinds, (name, count) in the order of the ranks.

    Speeds are those of published peak rates in `dtype`, as far as they are reached, relative to the
    `reference` GPU of the profile: an assumption. Links are as fast as the slowest kind's.
    Raises ClusterError where a GPU is unknown, or the reference has no figures for `dtype`.
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
        host_link=min((one.host_link for one in clusters if one.host_link), key=_slowness),
        action_overhead=max(one.action_overhead for one in clusters),
        sends_overlap=all(one.sends_overlap for one in clusters),
        gpus=groups,
        source="; ".join(dict.fromkeys(one.source for one in clusters))
        + f"; speeds from peak {dtype} rates relative to {reference}",
    )


def _slowness(link: HostLink) -> tuple[bool, float]:
    return link.overlaps, link.bandwidth


def _pace(gpu: Gpu, dtype: str) -> float:
    if dtype not in gpu.flops:
        raise ClusterError(
            f"{gpu.name}: no rate is known for {dtype}; known: {', '.join(gpu.flops)}; "
            "write the speeds into a cluster file"
        )
    return gpu.flops[dtype] * gpu.compute_efficiency


def gpus_on_each_node(gpus: int, nodes: int, per_node: int | None = None) -> int:
    """GPUs of a node, for `gpus` in all; raises ClusterError where the counts contradict."""
    if gpus < 1 or nodes < 1:
        raise ClusterError(f"{gpus} GPUs on {nodes} nodes: both must be at least 1")
    if per_node is not None and per_node * nodes != gpus:
        raise ClusterError(
            f"{nodes} nodes of {per_node} GPUs are {nodes * per_node} GPUs, not {gpus}; "
            "--gpus counts all GPUs of all nodes"
        )
    if gpus % nodes:
        raise ClusterError(
            f"{gpus} GPUs do not divide evenly over {nodes} nodes; --gpus counts all GPUs: "
            f"try --gpus {gpus - gpus % nodes or nodes} or --gpus {gpus + nodes - gpus % nodes}"
        )
    return gpus // nodes


def _source(gpu: Gpu) -> str:
    return (
        f"{gpu.name}: {gpu.source}; inter-node link, latencies and reserve are assumptions "
        "(autopart/cluster.py), replace them with your own"
    )


def load_cluster(path: Path | str) -> Cluster:
    """Read a cluster file strictly; raises FileError, or ClusterError where it contradicts itself."""
    cluster = read_file(Path(path), Cluster, FORMAT, VERSION)
    check_cluster(cluster, str(path))
    return cluster


def save_cluster(cluster: Cluster, path: Path | str) -> None:
    """Write a cluster file whole or not at all."""
    write_file(Path(path), encode(cluster))
