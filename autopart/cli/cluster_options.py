"""The cluster that the options of a command line describe, and how they were read."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from autopart.cluster import (
    HOST_LATENCY,
    Cluster,
    HostLink,
    Link,
    cluster_of,
    gpus_on_each_node,
    load_cluster,
    mixed_cluster,
)
from autopart.errors import ClusterError, UsageError
from autopart.gpus import GPUS
from autopart.profile import Profile


class ClusterOptions(NamedTuple):
    """What the user typed; None where nothing was."""

    gpus: int | None
    nodes: int | None
    gpus_per_node: int | None
    gpu: str | None
    memory: int | None
    reserve: int | None
    intra_bandwidth: float | None
    inter_bandwidth: float | None
    host_bandwidth: float | None
    host_memory: int | None
    cluster: Path | None


def chosen_cluster(options: ClusterOptions, profile: Profile) -> Cluster:
    """The cluster file, or the named GPUs' published figures; single options replace figures.

    Raises ClusterError where the counts contradict each other, UsageError without any.
    """
    if options.cluster is not None:
        base = _recounted(load_cluster(options.cluster), options)
    elif options.gpu is not None and ":" in options.gpu:
        base = _mixed(options.gpu, options, profile)
    else:
        base = cluster_of(_gpu_name(options, profile), *_counts(options))
    return _refined(base, options)


def _mixed(text: str, options: ClusterOptions, profile: Profile) -> Cluster:
    """Read `h100-sxm:4,a100-sxm-80gb:4`, the GPUs in the order of the ranks."""
    kinds: list[tuple[str, int]] = []
    for part in text.split(","):
        name, _, count = part.partition(":")
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(f"--gpu {text}: '{part}' has no count; write h100-sxm:4,l40s:4")
        kinds.append((name, int(count)))
    total = sum(count for _, count in kinds)
    per_node = options.gpus_per_node
    nodes = options.nodes or (total // per_node if per_node else 1)
    if options.gpus not in (None, total) or per_node not in (None, total / nodes):
        raise UsageError(
            f"--gpu {text} names {total} GPUs; leave the other counts out, or say as many"
        )
    reference = _gpu_name(options._replace(gpu=None), profile)
    return mixed_cluster(kinds, reference, profile.dtype, nodes)


def _counts(options: ClusterOptions) -> tuple[int, int, int | None]:
    gpus, nodes, per_node = options.gpus, options.nodes, options.gpus_per_node
    if gpus is None and per_node is None:
        raise UsageError(
            "say how many GPUs: --gpus 8 --nodes 2 (8 in all), --nodes 2 --gpus-per-node 4, "
            "or --cluster FILE"
        )
    if gpus is None:
        return (nodes or 1) * (per_node or 1), nodes or 1, per_node
    if nodes is None and per_node is not None and gpus % per_node == 0:
        nodes = gpus // per_node
    return gpus, nodes or 1, per_node


def _recounted(cluster: Cluster, options: ClusterOptions) -> Cluster:
    """The cluster of a file, with the counts of the options where they say any."""
    if options.gpu is not None:
        raise UsageError("--cluster names its own GPU; leave --gpu out")
    if options.gpus is None and options.nodes is None and options.gpus_per_node is None:
        return cluster
    nodes = options.nodes or cluster.num_nodes
    gpus = options.gpus or nodes * (options.gpus_per_node or cluster.gpus_per_node)
    per_node = gpus_on_each_node(gpus, nodes, options.gpus_per_node)
    return msgspec.structs.replace(cluster, num_nodes=nodes, gpus_per_node=per_node)


def _refined(cluster: Cluster, options: ClusterOptions) -> Cluster:
    if options.memory is not None and cluster.gpus:
        raise UsageError("--memory is for equal GPUs; these are listed, each with its own")
    if options.memory is not None:
        cluster = msgspec.structs.replace(cluster, memory_bytes=options.memory)
    if options.reserve is not None:
        cluster = msgspec.structs.replace(cluster, reserve_bytes=options.reserve)
    if options.host_memory is not None:
        cluster = msgspec.structs.replace(cluster, host_memory_bytes=options.host_memory)
    return msgspec.structs.replace(
        cluster,
        host_link=_host_link(cluster, options.host_bandwidth),
        intra_node=_link(cluster.intra_node, options.intra_bandwidth),
        inter_node=_link(cluster.inter_node, options.inter_bandwidth),
    )


def _link(link: Link, bandwidth: float | None) -> Link:
    return link if bandwidth is None else msgspec.structs.replace(link, bandwidth=bandwidth)


def _host_link(cluster: Cluster, bandwidth: float | None) -> HostLink | None:
    """The cluster's link to the host at another bandwidth; where it has none, one that copies beside
    compute just if sends do."""
    if bandwidth is None:
        return cluster.host_link
    known = cluster.host_link or HostLink(
        bandwidth=bandwidth, latency=HOST_LATENCY, overlaps=cluster.sends_overlap
    )
    return msgspec.structs.replace(known, bandwidth=bandwidth)


def _gpu_name(options: ClusterOptions, profile: Profile) -> str:
    """The GPU that was asked for, else what the profile was measured on."""
    if options.gpu is not None:
        return options.gpu
    device = profile.device
    if device.kind == "cpu":
        return "cpu"
    known = next(
        (gpu.name for gpu in GPUS.values() if device.name in (gpu.name, *gpu.cuda_names)), None
    )
    if known is None:
        raise ClusterError(
            f"the profile was measured on '{device.name}', of which no figures are known; "
            f"name the GPU with --gpu ({', '.join(GPUS)}) or give --cluster FILE"
        )
    return known


def notes_on(profile: Profile, cluster: Cluster) -> list[str]:
    """What to keep in mind of a plan of this profile for this cluster."""
    notes: list[str] = []
    if cluster.gpus and len({group.name for group in cluster.gpus}) > 1:
        notes.append(
            "the GPUs differ: each layer is taken to be faster or slower by its GPU's one speed"
        )
    if profile.method != "measured":
        notes.append(f"the times are {profile.method}: no layer was run on the device")
    elif profile.device.kind == "cpu" and cluster.gpu != "cpu":
        notes.append(
            f"the times were measured on a CPU ({profile.device.name}), not on {cluster.gpu}"
        )
    return notes
