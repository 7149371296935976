"""Known nodes: GPUs, rails and bandwidths of machines that people rent or own, each with its source.

Bandwidths are effective: nccl-tests reaches them with large messages. A rail reaches 0.97 of a
400 Gbit/s adapter, and 0.96 of slower ones. `ring_bandwidth` is the bus bandwidth of an all-gather
on one node, `switch_bandwidth` that of an all-reduce with NVLS. "assumed" marks figures that nobody
measured. docs/clusters.md shows each node, docs/benchmarks.md the errors of the formulas.
"""

import difflib
from typing import NamedTuple

import msgspec

from autopart.errors import ClusterError
from autopart.records.cluster import HOST_LATENCY, Cluster, HostLink, Link
from autopart.records.known_gpus import find_gpu
from autopart.records.network import Network, with_gpus
from autopart.text import known_names

INSIDE_LATENCY = 9.3e-6
ACROSS_LATENCY = 14.5e-6
"""Seconds per send on a node and between two, as NCCL's sendrecv takes on B200 (public vendor test)."""
SEND_SHARE = 0.75
"""Share of a rail that one send reaches: 36 of 48.5 GB/s with tuned channels (the same test)."""

NIC_400G = 48.5e9
NIC_200G = 24e9
NIC_100G = 12e9
"""Bytes per second that collectives reach over one adapter (sjeaugey, nccl-tests issues 119, 130, 267)."""
EFA_HOP = 6e-5
"""Seconds per step between nodes over EFA, from all-gathers on AWS p5; NCCL assumes 1.4e-5 elsewhere."""


class Preset(NamedTuple):
    """One kind of node."""

    name: str
    """Name on the command line."""
    title: str
    """Words for people."""
    gpu: str
    """GPU name in autopart/records/known_gpus.py."""
    gpus_per_node: int
    network: Network
    host_bandwidth: float
    """Bytes per second between a GPU and its host, in one direction."""
    source: str
    """Where the figures come from."""


_STAS = "stas00/ml-engineering network/README.md"
_HOST = "host copies as measured (Azure/AI-benchmarking-guide)"
_A100 = Network(rails=8, rail_bandwidth=NIC_200G, ring_bandwidth=235e9)
_H100 = Network(rails=8, rail_bandwidth=NIC_400G, ring_bandwidth=370e9, switch_bandwidth=480e9)
_B200 = Network(rails=8, rail_bandwidth=NIC_400G, ring_bandwidth=690e9, switch_bandwidth=840e9)


def _changed(network: Network, **fields: float) -> Network:
    return msgspec.structs.replace(network, **fields)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "dgx-h100", "NVIDIA DGX H100, 8 x NDR 400G", "h100-sxm", 8, _H100, 51.5e9,
            f"DGX H100 user guide (8 ConnectX-7); ring 361-367 and NVLS 480 GB/s: dgxc-benchmarking, {_STAS}; {_HOST}",
        ),
        Preset(
            "dgx-a100", "NVIDIA DGX A100, 8 x HDR 200G", "a100-sxm-80gb", 8, _A100, 26e9,
            f"DGX A100 user guide; ring 231-235 GB/s: {_STAS}, nccl issue 812; {_HOST}",
        ),
        Preset(
            "nd-h100-v5", "Azure ND H100 v5, 8 x NDR 400G", "h100-sxm", 8, _H100, 51.5e9,
            f"learn.microsoft.com ndh100v5 (400 Gb/s per GPU); Azure/AI-benchmarking-guide; {_HOST}",
        ),
        Preset(
            "p4d", "AWS p4d.24xlarge, EFA 4 x 100G", "a100-sxm-40gb", 8,
            _changed(_A100, rails=4, rail_bandwidth=NIC_100G, hop=EFA_HOP), 26e9,
            "AWS EC2 accelerated computing pages; aws-samples/awsome-distributed-training (p4de: 78 GB/s on 2 nodes)",
        ),
        Preset(
            "p5", "AWS p5.48xlarge, EFA 32 x 100G", "h100-sxm", 8, _changed(_H100, hop=EFA_HOP),
            55e9, "AWS EC2 accelerated computing pages, four adapters per GPU as one rail; crazyguitar/aws-gpu-communication-benchmark",
        ),
        Preset(
            "p5en", "AWS p5en.48xlarge, EFA 16 x 200G", "h200-sxm", 8,
            _changed(_H100, hop=EFA_HOP), 55e9,
            f"AWS EC2 accelerated computing pages, two adapters per GPU as one rail; {_STAS}",
        ),
        Preset(
            "a3-mega", "Google a3-megagpu-8g, 8 x 200G TCPXO", "h100-sxm", 8,
            _changed(_H100, rail_bandwidth=NIC_200G, hop=EFA_HOP), 51.5e9,
            "cloud.google.com gpu-network-bandwidth (1,800 Gbps in all, 8 x 200 for GPUs); all-gather 189 GB/s on 2 nodes; hop assumed as EFA's",
        ),
        Preset(
            "a3-ultra", "Google a3-ultragpu-8g, 8 x 400G RoCE", "h200-sxm", 8, _H100, 53e9,
            "cloud.google.com gpu-network-bandwidth (3,600 Gbps in all, 8 x 400 for GPUs); inside as DGX H100",
        ),
        Preset(
            "dgx-b200", "NVIDIA DGX B200, 8 x 400G", "b200-sxm", 8, _B200, 64e9,
            f"ring 672-695 and NVLS 842 GB/s: Vultr test report, {_STAS}; PCIe 5.0 x16 nominal",
        ),
        Preset(
            "gb200-nvl72", "NVIDIA GB200 NVL72, a rack as one node, 400G per GPU", "gb200", 72,
            Network(rails=72, rail_bandwidth=NIC_400G, ring_bandwidth=680e9, switch_bandwidth=840e9),
            450e9, "coreweave/nccl-tests README (835 GB/s on 72 GPUs); C2C host link nominal",
        ),
        Preset(
            "b300", "NVIDIA HGX B300, 8 x 800G", "b300-sxm", 8,
            _changed(_B200, rail_bandwidth=2 * NIC_400G), 64e9,
            "OCI B300 guide (767 GB/s on 2 nodes); inside assumed as B200; host link assumed PCIe 5.0",
        ),
        Preset(
            "dgx-1v", "NVIDIA DGX-1 V100, 4 x EDR 100G", "v100-sxm-32gb", 8,
            Network(rails=4, rail_bandwidth=NIC_100G, ring_bandwidth=135e9), 13e9,
            "nccl-tests issue 29 (4 adapters, 48 GB/s); ring 135 GB/s: OCI BM.GPU3.8; host copies 13 of 16 GB/s",
        ),
        Preset(
            "dgx-2", "NVIDIA DGX-2, 16 V100, 8 x EDR 100G", "v100-sxm-32gb", 16,
            Network(rails=8, rail_bandwidth=NIC_100G, ring_bandwidth=125e9), 13e9,
            "DGX-2 user guide (8 adapters); ring 120-135 GB/s assumed; host copies 13 of 16 GB/s",
        ),
        Preset(
            "a100-pcie", "Server with 8 A100 PCIe, 2 x 200G", "a100-pcie-80gb", 8,
            Network(rails=2, rail_bandwidth=NIC_200G, ring_bandwidth=20e9), 26e9,
            "assumed: ring over PCIe 4.0 and the adapters; no NVLink bridges; host copies 26 of 32 GB/s",
        ),
        Preset(
            "l40s", "Server with 8 L40S, 2 x 200G", "l40s", 8,
            Network(rails=2, rail_bandwidth=NIC_200G, ring_bandwidth=20e9), 26e9,
            "assumed: ring over PCIe 4.0 and the adapters; host copies 26 of 32 GB/s",
        ),
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """The node called `name`; raises ClusterError with the known names, nearest first."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=len(PRESETS), cutoff=0.0)
    raise ClusterError(f"there is no file and no known cluster '{name}'; {known_names(name, near)}")


def node_of(gpu: str, gpus_per_node: int = 1) -> Preset | None:
    """The smallest known node with so many such GPUs, the first listed where several are alike.

    None where no known node has as many.
    """
    fitting = [p for p in PRESETS.values() if p.gpu == gpu and p.gpus_per_node >= gpus_per_node]
    return min(fitting, key=lambda p: p.gpus_per_node, default=None)


def preset_cluster(preset: Preset, nodes: int = 1, gpus_per_node: int | None = None) -> Cluster:
    """So many nodes of one kind; where only some of their GPUs are used, each keeps its share of the rails."""
    gpu, network = find_gpu(preset.gpu), preset.network
    used = gpus_per_node or preset.gpus_per_node
    share = network.rails * network.rail_bandwidth / preset.gpus_per_node
    return Cluster(
        gpu=gpu.name,
        num_nodes=nodes,
        gpus_per_node=used,
        memory_bytes=gpu.memory_bytes,
        reserve_bytes=gpu.reserve_bytes,
        intra_node=Link(bandwidth=network.ring_bandwidth, latency=INSIDE_LATENCY),
        inter_node=Link(
            bandwidth=SEND_SHARE * max(share, network.rail_bandwidth), latency=ACROSS_LATENCY
        ),
        network=with_gpus(network, preset.gpus_per_node, used),
        host_link=HostLink(bandwidth=preset.host_bandwidth, latency=HOST_LATENCY),
        action_overhead=gpu.action_overhead,
        source=f"{preset.name}: {preset.source}",
    )
