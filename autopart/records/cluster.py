"""Clusters: nodes with GPUs, the links between them, and each rank's memory.

Bandwidths are bytes per second, latencies seconds, memory sizes bytes.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.errors import ClusterError
from autopart.records.files import read_file, write_record
from autopart.records.gpu import Gpu
from autopart.records.known_gpus import find_gpu
from autopart.records.measured_collectives import Bandwidth, MeasuredCollectives
from autopart.records.network import Network, check_network
from autopart.text import counted
from autopart.units import Bytes, PositiveCount, Seconds

FORMAT = "autopart-cluster"
VERSION = 1

MOST_GPUS = 2**18
"""GPUs in the largest cluster."""
MOST_FACTOR = 1e6
"""The largest factor between two speeds; its inverse is the smallest."""
UNLIMITED = 1 << 60
"""Bytes on one GPU: more than any model needs."""

Factor = Annotated[float, msgspec.Meta(ge=1 / MOST_FACTOR, le=MOST_FACTOR)]

INTER_NODE_BANDWIDTH = 25e9
"""One 200 Gbit/s adapter per GPU (HDR InfiniBand, 25 GB/s), the smaller of the two usual ones."""
INTRA_NODE_LATENCY = 10e-6
INTER_NODE_LATENCY = 20e-6
"""A typical NCCL point-to-point call. Measure your own cluster."""
HOST_LATENCY = 10e-6
"""Typical seconds to start one copy between a GPU and its host. Measure your own."""


Sends = Literal["buffered", "rendezvous"]
SENDS: tuple[Sends, ...] = ("buffered", "rendezvous")
"""Whether a send starts once its result is made, or waits until its receiver asks for it."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link from one rank to another: a send takes `latency + bytes / bandwidth` seconds."""

    bandwidth: Bandwidth
    """Bytes per second in one direction."""
    latency: Seconds = 0.0
    """Seconds that a send takes besides the time for its bytes."""
    all_reduce_factor: Factor = 1.0
    """All-reduce time over this link, divided by the time that a ring with its sends takes."""
    collectives: MeasuredCollectives | msgspec.UnsetType = msgspec.UNSET
    """The collectives inside rank groups over this link; without them each is part of a ring."""


class HostLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link between rank and host memory: a copy takes `latency + bytes / bandwidth` seconds."""

    bandwidth: Bandwidth
    """Bytes per second in one direction."""
    latency: Seconds = 0.0
    """Seconds that a copy takes besides the time for its bytes."""
    overlaps: bool = True
    """Whether copies overlap with compute (GPU). Otherwise the rank waits for each copy (CPU)."""


class GpuGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal GPUs on consecutive ranks."""

    count: PositiveCount
    """How many GPUs the group has."""
    name: str
    """GPU name."""
    memory_bytes: Bytes
    """Memory per GPU."""
    speed: Factor = 1.0
    """Speed relative to the profile's device. With 0.5 every layer takes twice its profiled time."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes with GPUs. Rank r is on node r // gpus_per_node."""

    format: Literal["autopart-cluster"] = FORMAT
    version: Literal[1] = VERSION
    gpu: str
    """GPU name; several names joined by + where GPUs differ."""
    num_nodes: PositiveCount
    """How many nodes there are."""
    gpus_per_node: PositiveCount
    """GPUs on each node."""
    memory_bytes: Bytes
    """Memory per GPU, or per process on a CPU. Where GPUs differ, the smallest GPU's memory."""
    reserve_bytes: Bytes = 0
    """Bytes within `memory_bytes` that the framework keeps for itself."""
    intra_node: Link
    """The link between two ranks on the same node."""
    inter_node: Link
    """The link between two ranks on different nodes."""
    network: Network | None = None
    """Rails and latencies of collectives; null where they are rings over these links."""
    host_link: HostLink | None = None
    """Each rank's link to host memory. Without it nothing is offloaded."""
    host_memory_bytes: Bytes | None = None
    """Host memory per node for offloaded bytes; null where all of them have room."""
    action_overhead: Seconds = 0.0
    """Fixed seconds that the executor adds to each action."""
    compute_slowdown: Annotated[float, msgspec.Meta(ge=1.0, le=MOST_FACTOR)] = 1.0
    """Compute time while all ranks on the node compute, divided by compute time alone."""
    memory_slowdown: Annotated[float, msgspec.Meta(ge=1.0, le=MOST_FACTOR)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    """The same for operations that wait for memory, which ranks on one CPU share. Absent: as compute."""
    sends_overlap: bool = True
    """Whether a send overlaps with compute (GPU). Otherwise it keeps both ranks busy (gloo on a CPU)."""
    sends: Sends = "buffered"
    """Whether sends wait for their receiver: a property of the framework that runs the plan."""
    gpus: tuple[GpuGroup, ...] = ()
    """All GPUs in rank order, where they differ; empty where all are alike."""
    source: str = ""
    """Where the figures come from."""


def num_gpus(cluster: Cluster) -> int:
    """GPUs on all nodes together."""
    return cluster.num_nodes * cluster.gpus_per_node


def check_cluster(cluster: Cluster, where: str = "cluster") -> None:
    """Raise ClusterError where there are too many GPUs, or fields contradict each other."""
    check_number(num_gpus(cluster), where)
    if cluster.network is not None:
        check_network(cluster.network, cluster.gpus_per_node, where)
    if not cluster.gpus:
        return
    listed = sum(group.count for group in cluster.gpus)
    if listed != num_gpus(cluster):
        raise ClusterError(
            f"{where}: gpus lists {counted(listed, 'GPU')}, but {counted(cluster.num_nodes, 'node')} of "
            f"{cluster.gpus_per_node} would be {num_gpus(cluster)}; the counts must add up to that"
        )
    least = min(group.memory_bytes for group in cluster.gpus)
    if cluster.memory_bytes != least:
        raise ClusterError(
            f"{where}: memory_bytes is {cluster.memory_bytes}, but the smallest of gpus has "
            f"{least}; write {least}"
        )


def check_number(gpus: int, where: str) -> None:
    """Raise ClusterError where there are more GPUs than any cluster has."""
    if gpus > MOST_GPUS:
        raise ClusterError(
            f"{where}: {gpus} GPUs are too many; at most {MOST_GPUS} are planned for"
        )


@functools.lru_cache(maxsize=64)
def _by_rank(gpus: tuple[GpuGroup, ...]) -> tuple[int, ...]:
    """Each rank's group."""
    return tuple(at for at, group in enumerate(gpus) for _ in range(group.count))


def group_of(cluster: Cluster, rank: int) -> int:
    """The rank's group, as a place in `gpus`; 0 where all GPUs are alike."""
    return _by_rank(cluster.gpus)[rank] if cluster.gpus else 0


def slowest_speed(cluster: Cluster, ranks: Iterable[int]) -> float:
    """The slowest speed among `ranks` while all ranks compute, relative to the profile's device."""
    if not cluster.gpus:
        return 1.0 / cluster.compute_slowdown
    speeds = (cluster.gpus[group_of(cluster, rank)].speed for rank in ranks)
    return min(speeds, default=1.0) / cluster.compute_slowdown


def fastest_speed(cluster: Cluster) -> float:
    """The fastest GPU's speed while all ranks compute, relative to the profile's device."""
    return max((group.speed for group in cluster.gpus), default=1.0) / cluster.compute_slowdown


def fastest_places(cluster: Cluster, count: int, replicas: int) -> list[float]:
    """The highest speeds that `count` places with so many ranks each can have, fastest first.

    A place is as fast as its slowest rank while all ranks compute. Relative to the profile's device.
    """
    speeds = sorted((one.speed for one in cluster.gpus for _ in range(one.count)), reverse=True)
    if not speeds:
        return [fastest_speed(cluster)] * count
    return [speeds[(at + 1) * replicas - 1] / cluster.compute_slowdown for at in range(count)]


def smallest_memory(cluster: Cluster, ranks: Iterable[int]) -> int:
    """Bytes on the smallest GPU among `ranks`."""
    if not cluster.gpus:
        return cluster.memory_bytes
    return min(cluster.gpus[group_of(cluster, rank)].memory_bytes for rank in ranks)


def largest_memory(cluster: Cluster) -> int:
    """Bytes on the largest GPU."""
    return max((group.memory_bytes for group in cluster.gpus), default=cluster.memory_bytes)


def without_memory_limit(cluster: Cluster) -> Cluster:
    """The cluster with GPUs that hold everything."""
    groups = tuple(msgspec.structs.replace(own, memory_bytes=UNLIMITED) for own in cluster.gpus)
    return msgspec.structs.replace(cluster, memory_bytes=UNLIMITED, gpus=groups)


def host_share(cluster: Cluster) -> int | None:
    """Host memory per rank for offloaded bytes; None where all of them have room."""
    whole = cluster.host_memory_bytes
    return None if whole is None else whole // cluster.gpus_per_node


def slowest_link(cluster: Cluster, ranks: tuple[int, ...]) -> Link:
    """The slowest link on a ring over `ranks`."""
    size = cluster.gpus_per_node
    return cluster.intra_node if min(ranks) // size == max(ranks) // size else cluster.inter_node


def cluster_of(gpu: str, gpus: int, nodes: int = 1, gpus_per_node: int | None = None) -> Cluster:
    """A cluster with `gpus` GPUs on `nodes` equal nodes, with the GPU's published figures.

    `gpus` counts the GPUs on all nodes together. Raises ClusterError where the counts contradict each other
    or the GPU is unknown.
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


def gpus_on_each_node(gpus: int, nodes: int, per_node: int | None = None) -> int:
    """GPUs per node, for `gpus` GPUs in all; raises ClusterError where the counts contradict."""
    over = counted(nodes, "node")
    if gpus < 1 or nodes < 1:
        raise ClusterError(f"{counted(gpus, 'GPU')} on {over}: both must be at least 1")
    check_number(gpus, "cluster")
    if per_node is not None and per_node * nodes != gpus:
        raise ClusterError(
            f"{over} of {counted(per_node, 'GPU')} make {counted(nodes * per_node, 'GPU')}, "
            f"not {gpus}; --gpus counts all GPUs of all nodes"
        )
    if gpus % nodes:
        raise ClusterError(
            f"{counted(gpus, 'GPU does', 'GPUs do')} not divide evenly over {over}; "
            f"--gpus counts all GPUs: try --gpus {gpus - gpus % nodes or nodes} or --gpus {gpus + nodes - gpus % nodes}"
        )
    return gpus // nodes


def _source(gpu: Gpu) -> str:
    """Where the GPU's figures come from, and which figures are assumptions."""
    return (
        f"{gpu.name}: {gpu.source}; inter-node link, latencies and reserve are assumptions "
        "(autopart/records/cluster.py), replace them with your own"
    )


def load_cluster(path: Path | str) -> Cluster:
    """Read a cluster file; raises FileError, or ClusterError where it contradicts itself."""
    cluster = read_file(Path(path), Cluster, FORMAT, VERSION)
    check_cluster(cluster, str(path))
    return cluster


def save_cluster(cluster: Cluster, path: Path | str) -> None:
    """Write a cluster file, whole or not at all; raises FileError where it could not be read again."""
    write_record(Path(path), cluster, FORMAT, VERSION)
