"""A probe on the terminal: measured messages by size, and the cluster file's figures."""

from collections.abc import Sequence

from msgspec import UNSET
from rich.console import RenderableType
from rich.table import Table

from autopart.cost.links import send_time
from autopart.cost.probe_comparison import error_of
from autopart.cost.syncs import all_reduce_time, measured_price
from autopart.records.cluster import Cluster, HostLink, Link
from autopart.records.network import Network
from autopart.records.probe import LinkReadings, Probe, ProbeSummary
from autopart.records.readings import MessageComparison, Reading
from autopart.report.columns import add_number, add_text, new_table, plain
from autopart.text import counted
from autopart.units import format_bandwidth, format_bytes, format_share, format_time


def probe_report(summary: ProbeSummary) -> Sequence[RenderableType]:
    """A table for all messages and copies, and a line for each figure in the cluster file."""
    lines = _cluster_lines(summary.cluster, summary.probe)
    tables = [_table(summary.cluster, summary.probe)]
    if summary.comparisons:
        tables.append(_network_table(summary.comparisons))
    return *tables, *(plain(line) for line in lines)


def _network_table(compared: Sequence[MessageComparison]) -> Table:
    table = new_table("network", "a lone group on shared rails is faster than its price (*)")
    add_text(table, "message")
    for head in ("size", "measured", "predicted", "off"):
        add_number(table, head)
    before = ""
    for one in compared:
        table.add_row(
            one.what if one.what != before else "",
            format_bytes(one.num_bytes),
            format_time(one.measured),
            format_time(one.predicted),
            f"{error_of(one):+.0%}" + ("" if one.shares else "*"),
        )
        before = one.what
    return table


def _table(cluster: Cluster, probe: Probe) -> Table:
    table = new_table(
        f"{counted(probe.num_nodes, 'node')} x {counted(probe.gpus_per_node, 'rank')}, {probe.device_name} ({probe.backend})"
    )
    add_text(table, "message")
    for head in ("size", "measured", "in the cluster", "spread", "repeats"):
        add_number(table, head)
    for where, kind, link in (
        ("inside a node", probe.intra_node, cluster.intra_node),
        ("across nodes", probe.inter_node, cluster.inter_node),
    ):
        if kind is not None:
            _add_link(table, where, kind, link)
    host = cluster.host_link
    assert host is not None
    _add_rows(table, "copy to the host", probe.host, [_copy_time(host, r) for r in probe.host])
    return table


def _copy_time(host: HostLink, reading: Reading) -> float:
    link = Link(bandwidth=host.bandwidth, latency=host.latency)
    return float(send_time(link, reading.num_bytes, 1))


def _add_link(table: Table, where: str, kind: LinkReadings, link: Link) -> None:
    predicted = [float(send_time(link, r.num_bytes, 1)) for r in kind.readings]
    _add_rows(table, f"send {where}", kind.readings, predicted)
    ranks = kind.all_reduce_ranks
    predicted = [float(all_reduce_time(link, r.num_bytes, ranks)) for r in kind.all_reduce]
    _add_rows(table, f"all-reduce of {ranks}", kind.all_reduce, predicted)
    for one in kind.collectives:
        assert link.collectives is not UNSET
        price = measured_price(link.collectives, one.ranks, one.collective)
        predicted = [price.seconds(float(r.num_bytes)) for r in one.readings]
        name = one.collective.replace("_", "-")
        _add_rows(table, f"{name} of {one.ranks}", one.readings, predicted)


def _add_rows(
    table: Table, message: str, readings: Sequence[Reading], predicted: Sequence[float]
) -> None:
    for place, (reading, seconds) in enumerate(zip(readings, predicted, strict=True)):
        table.add_row(
            "" if place else message,
            format_bytes(reading.num_bytes),
            format_time(reading.time),
            format_time(seconds),
            format_share(reading.spread),
            str(reading.count),
        )


def _cluster_lines(cluster: Cluster, probe: Probe) -> list[str]:
    overhead = probe.action_overhead
    links = [("inside a node", probe.intra_node, cluster.intra_node)]
    links.append(("across nodes", probe.inter_node, cluster.inter_node))
    hidden = [kind.hidden for _, kind, _ in links if kind is not None][-1]
    return [
        *(_link_line(where, link) for where, kind, link in links if kind is not None),
        *([] if cluster.network is None else [_network_line(cluster.network)]),
        f"sends {'overlap with' if cluster.sends_overlap else 'interrupt'} compute "
        f"({format_share(hidden)} of a send is hidden)",
        f"compute takes {probe.slowdown:.3f} times as long while neighbours compute (memory copies "
        f"alone {probe.slowdown_of_copies:.2f} times)",
        "fixed cost of an action "
        + (format_time(overhead) if overhead is not None else "not measured: taken as 0"),
        f"memory of a rank {format_bytes(cluster.memory_bytes)}, of which "
        f"{format_bytes(cluster.reserve_bytes)} are in use before a model exists",
    ]


def _network_line(network: Network) -> str:
    switch = network.switch_bandwidth
    inside = f"ring {format_bandwidth(network.ring_bandwidth)}"
    if switch is not None:
        inside += (
            f", switch {format_bandwidth(switch)} from {counted(network.switch_ranks, 'rank')} on"
        )
    return (
        f"network of a node: {inside}; {counted(network.rails, 'rail')} of "
        f"{format_bandwidth(network.rail_bandwidth)}, {format_time(network.hop)} per hop, another rail "
        f"{format_share(network.off_rail)} as fast; compute takes {format_share(network.slowdown)} longer "
        "beside a sync"
    )


def _link_line(where: str, link: Link) -> str:
    return (
        f"{where}: {format_time(link.latency)} + bytes / {format_bandwidth(link.bandwidth)}, "
        f"all-reduces {link.all_reduce_factor:.2f} times the ring"
    )
