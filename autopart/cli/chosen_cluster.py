"""The cluster that options describe: from a file, or the known node that a GPU comes in."""

import dataclasses
import os
from pathlib import Path

import msgspec

from autopart.cli.cluster_options import ClusterOptions
from autopart.cli.console import say
from autopart.errors import ClusterError, UsageError
from autopart.records.cluster import (
    HOST_LATENCY,
    Cluster,
    HostLink,
    Link,
    cluster_of,
    gpus_on_each_node,
    load_cluster,
    num_gpus,
)
from autopart.records.known_clusters import PRESETS, Preset, find_preset, node_of, preset_cluster
from autopart.records.known_gpus import GPUS, known_name
from autopart.records.mixed_cluster import mixed_cluster
from autopart.records.network import with_gpus
from autopart.records.profile import Profile, calibration_of
from autopart.report.made_by import made_by
from autopart.text import counted
from autopart.units import format_bandwidth


def chosen_cluster(options: ClusterOptions, profile: Profile) -> Cluster:
    """The cluster from the cluster file, or the known node that the named GPU comes in.

    Single options replace single figures. One line on stderr says what was assumed. Raises
    ClusterError on contradicting counts, UsageError where no count is given.
    """
    if options.cluster is not None:
        if _is_file(options.cluster):
            base = _recounted(load_cluster(options.cluster), options)
        else:
            base = _known(str(options.cluster), options)
    elif options.gpu is not None and ":" in options.gpu:
        base = _mixed(options.gpu, options, profile)
    else:
        base = _on_usual_nodes(_gpu_name(options, profile), options)
    cluster = _refined(base, options)
    for line in _assumptions(options, cluster):
        say(f"assumed: {line}")
    return cluster


def _on_usual_nodes(gpu: str, options: ClusterOptions) -> Cluster:
    """GPUs on the known nodes that they come in.

    Links from the datasheet stand in where no known node has so many, or a bandwidth was given.
    """
    plain = options.intra_bandwidth is not None or options.inter_bandwidth is not None
    usual = None if plain else node_of(gpu, options.gpus_per_node or 1)
    if usual is not None and options.gpus is None and options.nodes is not None:
        options = dataclasses.replace(
            options, gpus_per_node=options.gpus_per_node or usual.gpus_per_node
        )
    gpus, nodes, per_node = _counts(options)
    each = gpus_on_each_node(gpus, nodes, per_node)
    usual = None if plain else node_of(gpu, each)
    return (
        cluster_of(gpu, gpus, nodes, per_node)
        if usual is None
        else preset_cluster(usual, nodes, each)
    )


def _mixed(text: str, options: ClusterOptions, profile: Profile) -> Cluster:
    """Read `h100-sxm:4,a100-sxm-80gb:4`: the GPUs in rank order."""
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
            f"--gpu {text} names {counted(total, 'GPU')}; leave the other counts out, or make them equal"
        )
    reference = _gpu_name(dataclasses.replace(options, gpu=None), profile)
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
    # `--gpus 8 --gpus-per-node 4` means 2 nodes. Counts that do not divide stay for `cluster_of` to refuse.
    if nodes is None and per_node is not None and gpus % per_node == 0:
        nodes = gpus // per_node
    return gpus, nodes or 1, per_node


def _is_file(path: Path) -> bool:
    """Whether a path is a file's: it exists, or it has a folder or a suffix as names have not."""
    # os.path, unlike Path, takes a name that no file may have for a missing file.
    return os.path.isfile(path) or bool(path.suffix) or path.parent != Path()


def _known(name: str, options: ClusterOptions) -> Cluster:
    """The known cluster with a name, on as many nodes as asked for or needed."""
    preset = find_preset(name)
    if options.gpu not in (None, preset.gpu):
        raise UsageError(f"--cluster {name} has {preset.gpu}, not {options.gpu}; leave --gpu out")
    room, per_node = preset.gpus_per_node, options.gpus_per_node
    if per_node is None and options.gpus is not None and options.nodes is None:
        # As few nodes as hold them.
        nodes = -(-options.gpus // room)
    else:
        nodes = options.nodes or max(1, (options.gpus or 1) // (per_node or room))
    gpus = options.gpus or nodes * (per_node or room)
    each = gpus_on_each_node(gpus, nodes, per_node)
    if each > room:
        raise UsageError(
            f"--cluster {name} has {counted(room, 'GPU')} per node, not {each}; "
            f"{counted(gpus, 'GPU')} need --nodes {-(-gpus // room)}"
        )
    return preset_cluster(preset, nodes, each)


def _recounted(cluster: Cluster, options: ClusterOptions) -> Cluster:
    """The cluster from a file, with its counts replaced where options give counts."""
    if options.gpu is not None:
        raise UsageError("--cluster names its own GPU; leave --gpu out")
    if options.gpus is None and options.nodes is None and options.gpus_per_node is None:
        return cluster
    nodes = options.nodes or cluster.num_nodes
    gpus = options.gpus or nodes * (options.gpus_per_node or cluster.gpus_per_node)
    per_node = gpus_on_each_node(gpus, nodes, options.gpus_per_node)
    network = with_gpus(cluster.network, cluster.gpus_per_node, per_node)
    return msgspec.structs.replace(
        cluster, num_nodes=nodes, gpus_per_node=per_node, network=network
    )


def _refined(cluster: Cluster, options: ClusterOptions) -> Cluster:
    if cluster.network and (options.intra_bandwidth or options.inter_bandwidth):
        raise UsageError(
            "--intra-bandwidth and --inter-bandwidth are for clusters without a network record; "
            "write ring_bandwidth or rail_bandwidth into the cluster file ('autopart clusters -o')"
        )
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
    """The cluster's host link at another bandwidth.

    A cluster without a host link gets one. It overlaps with compute if sends do.
    """
    if bandwidth is None:
        return cluster.host_link
    known = cluster.host_link or HostLink(
        bandwidth=bandwidth, latency=HOST_LATENCY, overlaps=cluster.sends_overlap
    )
    return msgspec.structs.replace(known, bandwidth=bandwidth)


def _gpu_name(options: ClusterOptions, profile: Profile) -> str:
    """The GPU that the user named; by default the device in the profile."""
    if options.gpu is not None:
        return options.gpu
    device = profile.device
    if device.kind == "cpu":
        return "cpu"
    known = known_name(device.name)
    if known is None:
        raise ClusterError(
            f"the profile was measured on '{device.name}', of which no figures are known; "
            f"name the GPU with --gpu ({', '.join(GPUS)}) or give --cluster FILE"
        )
    return known


def _assumptions(options: ClusterOptions, cluster: Cluster) -> list[str]:
    """One line on the nodes or links that no option named; empty where nothing was assumed."""
    several = cluster.num_nodes > 1
    if options.cluster is not None or num_gpus(cluster) == 1:
        return []
    if cluster.network is None:
        return _assumed_links(options, cluster)
    usual = node_of(cluster.gpu, cluster.gpus_per_node)
    if usual is None:
        return []
    kind = f"{counted(cluster.num_nodes, 'node')} of kind {usual.name}"
    if cluster.gpus_per_node < usual.gpus_per_node:
        gpus = counted(usual.gpus_per_node, "GPU")
        kind += f", of which {cluster.gpus_per_node} of {gpus} are used"
    network = cluster.network
    rails = counted(network.rails, "rail")
    speeds = (
        f"{rails} of {format_bandwidth(network.rail_bandwidth)}"
        if several
        else f"a ring of {format_bandwidth(network.ring_bandwidth)}"
    )
    return [f"{kind} ({speeds}); --cluster takes {_other_nodes(usual)}"]


def _other_nodes(usual: Preset) -> str:
    """What `--cluster` may name in place of a node: the others with the same GPU, or a file."""
    others = [p.name for p in PRESETS.values() if p.gpu == usual.gpu and p is not usual]
    return ", ".join([*others, "or a file" if others else "a file"])


def _assumed_links(options: ClusterOptions, cluster: Cluster) -> list[str]:
    """One line on links from the datasheet that stand in for a network."""
    if cluster.num_nodes > 1 and options.inter_bandwidth is None:
        link = f"one link of {format_bandwidth(cluster.inter_node.bandwidth)} between nodes"
    elif cluster.gpu != "cpu" and options.intra_bandwidth is None and cluster.num_nodes == 1:
        link = f"links of {format_bandwidth(cluster.intra_node.bandwidth)} inside the node"
    else:
        return []
    if options.intra_bandwidth is not None or options.inter_bandwidth is not None:
        return [f"{link}; --inter-bandwidth or --intra-bandwidth replaces it"]
    usual = node_of(cluster.gpu)
    if usual is None:
        return [f"{link}, as no known node has {cluster.gpu}; --cluster takes a file"]
    known = f"{usual.name} has {usual.gpus_per_node} per node: add nodes, or --cluster takes a file"
    return [f"{link}, as no known node has {cluster.gpus_per_node} {cluster.gpu}; {known}"]


def notes_on(profile: Profile, cluster: Cluster) -> list[str]:
    """Limits on the figures in a plan from this profile for this cluster."""
    notes: list[str] = []
    if cluster.gpus and len({group.name for group in cluster.gpus}) > 1:
        notes.append(
            "the GPUs differ: each layer is taken to be faster or slower by its GPU's one speed"
        )
    if profile.method != "measured":
        made = made_by(profile.method, calibration_of(profile))
        notes.append(f"the times are {made}: no layer was run on the device")
    elif profile.device.kind == "cpu" and cluster.gpu != "cpu":
        notes.append(
            f"the times were measured on a CPU ({profile.device.name}), not on {cluster.gpu}"
        )
    return notes
