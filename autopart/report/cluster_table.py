"""Known clusters: a table, and the document for `--json`."""

import msgspec
from rich.table import Table

from autopart.records.cluster import Cluster
from autopart.records.known_clusters import Preset
from autopart.report.columns import add_number, new_table
from autopart.units import format_bandwidth, format_bytes


class KnownCluster(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of node that `--cluster` knows by name."""

    name: str
    """Name for `--cluster`."""
    title: str
    """Maker and network."""
    cluster: Cluster
    """Figures of so many nodes, with their source."""


class KnownClusters(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `autopart clusters --json`."""

    clusters: tuple[KnownCluster, ...]
    """All kinds of node, or the named one."""


def cluster_table(known: KnownClusters) -> Table:
    """One row for each kind of node; bandwidths are in one direction."""
    table = new_table("known clusters: one node each; --nodes gives more")
    for heading in ("--cluster", "GPU"):
        table.add_column(heading, no_wrap=True)
    for heading in ("GPUs", "memory", "ring", "switch", "rails"):
        add_number(table, heading)
    for one in known.clusters:
        network = one.cluster.network
        assert network is not None, "every known cluster has a network"
        switch = network.switch_bandwidth
        table.add_row(
            one.name,
            one.cluster.gpu,
            str(one.cluster.gpus_per_node),
            format_bytes(one.cluster.memory_bytes),
            format_bandwidth(network.ring_bandwidth),
            "-" if switch is None else format_bandwidth(switch),
            f"{network.rails} x {format_bandwidth(network.rail_bandwidth)}",
        )
    return table


def known_cluster(preset: Preset, cluster: Cluster) -> KnownCluster:
    """A preset with its figures for so many nodes."""
    return KnownCluster(name=preset.name, title=preset.title, cluster=cluster)
