"""A probe on the terminal: each link by the size of what was sent, and what the cluster takes from it."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autopart.cluster import Cluster, HostLink, Link
from autopart.cost import all_reduce_time, send_time
from autopart.probe_result import LinkReadings, Probe, ProbeSummary, Reading
from autopart.report.columns import add_number, add_text, new_table
from autopart.units import format_bandwidth, format_bytes, format_share, format_time


def probe_report(summary: ProbeSummary) -> Sequence[RenderableType]:
    """A table of everything that was sent or copied, and a line for each figure of the cluster."""
    lines = _cluster_lines(summary.cluster, summary.probe)
    return _table(summary.cluster, summary.probe), *(Text(line) for line in lines)


def _table(cluster: Cluster, probe: Probe) -> Table:
    table = new_table(
        f"{probe.num_nodes} nodes x {probe.gpus_per_node} ranks, {probe.device_name} ({probe.backend})"
    )
    add_text(table, "what")
    for head in ("size", "measured", "in the cluster", "scatter", "times"):
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


def _add_rows(
    table: Table, what: str, readings: Sequence[Reading], predicted: Sequence[float]
) -> None:
    for place, (reading, seconds) in enumerate(zip(readings, predicted, strict=True)):
        table.add_row(
            "" if place else what,
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
        f"sends {'run beside' if cluster.sends_overlap else 'keep their ranks from'} compute "
        f"({format_share(hidden)} of a send vanished beside it)",
        f"compute takes {probe.slowdown:.3f} times as long while neighbours compute (mere memory "
        f"traffic {probe.slowdown_of_copies:.2f} times)",
        "fixed cost of an action "
        + (format_time(overhead) if overhead is not None else "not measured: taken as nothing"),
        f"memory of a rank {format_bytes(cluster.memory_bytes)}, of which "
        f"{format_bytes(cluster.reserve_bytes)} are gone before a model is there",
    ]


def _link_line(where: str, link: Link) -> str:
    return (
        f"{where}: {format_time(link.latency)} + bytes / {format_bandwidth(link.bandwidth)}, "
        f"all-reduces {link.all_reduce_factor:.2f} times the ring"
    )
