"""Clusters: nodes of GPUs, the links between them, and what every rank can hold."""

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
FRAMEWORK_RESERVE = 1 << 30
"""CUDA context, NCCL buffers and allocator slack of one process; measure your own."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one rank can send to another: `latency + bytes / bandwidth` seconds."""

    bandwidth: Bandwidth
    latency: Seconds = 0.0


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes of equal GPUs; rank r sits on node r // gpus_per_node."""

    format: Literal["autopart-cluster"] = FORMAT
    version: Literal[1] = VERSION
    gpu: str
    num_nodes: PositiveCount
    gpus_per_node: PositiveCount
    memory_bytes: Bytes
    """Memory of one GPU (or of one process, on a CPU)."""
    reserve_bytes: Bytes = 0
    """The part of `memory_bytes` that the framework holds for itself."""
    intra_node: Link
    inter_node: Link
    action_overhead: Seconds = 0.0
    """Fixed cost of one action of the executor, beside the layers' own time."""
    sends_overlap: bool = True
    """Whether a send runs beside compute (GPU) or keeps both ranks busy (gloo on a CPU)."""
    source: str = ""
    """Where the numbers come from."""


def num_gpus(cluster: Cluster) -> int:
    """All GPUs of the cluster."""
    return cluster.num_nodes * cluster.gpus_per_node


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
        reserve_bytes=min(FRAMEWORK_RESERVE, known.memory_bytes // 16),
        intra_node=Link(bandwidth=known.link_bandwidth, latency=INTRA_NODE_LATENCY),
        inter_node=Link(
            bandwidth=min(INTER_NODE_BANDWIDTH, known.link_bandwidth), latency=INTER_NODE_LATENCY
        ),
        action_overhead=known.action_overhead,
        sends_overlap=known.sends_overlap,
        source=_source(known),
    )


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
    """Read a cluster file strictly; raises FileError."""
    return read_file(Path(path), Cluster, FORMAT, VERSION)


def save_cluster(cluster: Cluster, path: Path | str) -> None:
    """Write a cluster file whole or not at all."""
    write_file(Path(path), encode(cluster))
