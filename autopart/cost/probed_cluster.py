"""The cluster file that a probe's measurements make.

Message times become a latency and a bandwidth: a line through the measured points. We take the line with the least
sum over |log(predicted / measured)|. So a message of 4 bytes counts as much as one of 16 MiB, and twice too
long as much as half as long. One outlier moves nothing. One best line goes through two points, or through one
point with latency 0, as for least absolute deviations (Bloomfield and Steiger, 1983). So all such lines are tried.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

import msgspec

from autopart.cost.links import send_time
from autopart.cost.probed_network import fit_network, rails_of
from autopart.cost.syncs import all_reduce_time
from autopart.records.cluster import Cluster, HostLink, Link
from autopart.records.measured_collectives import MeasuredCollective, MeasuredCollectives
from autopart.records.network import Network
from autopart.records.probe import LinkReadings, Probe
from autopart.records.readings import NetworkReadings, Reading
from autopart.text import counted
from autopart.units import format_bandwidth, format_bytes, format_share, format_time

NOISY = 0.25
"""Spread of a measurement, or its distance from the line as a share, above which a note says so."""
HIDDEN = 0.5
"""Share of a send that must vanish beside compute for sends to count as overlapping."""


def fit_link(readings: Sequence[Reading]) -> Link:
    """The latency and bandwidth with the least `log_deviation`, for at least two sizes."""
    return min(_lines(readings), key=lambda link: log_deviation(link, readings))


def log_deviation(link: Link, readings: Sequence[Reading]) -> float:
    """The sum over |log(predicted / measured)|."""
    ratios = (send_time(link, r.num_bytes, 1) / r.time for r in readings)
    return sum(abs(math.log(ratio)) if ratio > 0.0 else math.inf for ratio in ratios)


def deviations(link: Link, readings: Sequence[Reading]) -> list[float]:
    """For each reading the distance from the link's prediction, as a share of the reading."""
    return [abs(send_time(link, r.num_bytes, 1) / r.time - 1.0) for r in readings]


def _lines(readings: Sequence[Reading]) -> Iterator[Link]:
    # Lines with latency 0 through each point.
    for reading in readings:
        yield Link(bandwidth=max(reading.num_bytes, 1) / reading.time)
    # Lines through two points that rise and have a latency of 0 or more.
    for a, b in itertools.combinations(readings, 2):
        if b.num_bytes != a.num_bytes and b.time > a.time:
            bandwidth = (b.num_bytes - a.num_bytes) / (b.time - a.time)
            latency = a.time - a.num_bytes / bandwidth
            if bandwidth > 0.0 and latency >= 0.0:
                yield Link(bandwidth=bandwidth, latency=latency)


def all_reduce_factor(link: Link, measured: LinkReadings) -> float:
    """Measured all-reduce time over a ring's predicted time, the median over sizes; 1 where none was measured."""
    ratios = [
        r.time / all_reduce_time(link, r.num_bytes, measured.all_reduce_ranks)
        for r in measured.all_reduce
    ]
    return statistics.median(ratios) if ratios else 1.0


def cluster_of_probe(probe: Probe) -> Cluster:
    """The cluster as it was measured.

    A kind of link that no pair of ranks uses gets the other kind's figures. Sends overlap compute where most of a
    send vanishes beside it on the slowest link.
    """
    kinds = [kind for kind in (probe.intra_node, probe.inter_node) if kind is not None]
    intra, inter = probe.intra_node or kinds[0], probe.inter_node or kinds[0]
    host = fit_link(probe.host)
    return Cluster(
        gpu=probe.gpu,
        num_nodes=probe.num_nodes,
        gpus_per_node=probe.gpus_per_node,
        memory_bytes=probe.memory_bytes,
        reserve_bytes=probe.reserve_bytes,
        intra_node=_link_of(intra),
        inter_node=_link_of(inter),
        network=_network_of(probe),
        host_link=HostLink(
            bandwidth=host.bandwidth, latency=host.latency, overlaps=probe.device == "cuda"
        ),
        host_memory_bytes=probe.host_memory_bytes,
        action_overhead=probe.action_overhead or 0.0,
        compute_slowdown=max(1.0, probe.slowdown),
        memory_slowdown=(
            max(1.0, probe.slowdown, probe.slowdown_of_copies)
            if probe.device == "cpu"
            else msgspec.UNSET
        ),
        sends_overlap=kinds[-1].hidden >= HIDDEN,
        source=_source(probe),
    )


def _link_of(measured: LinkReadings) -> Link:
    link = fit_link(measured.readings)
    return msgspec.structs.replace(
        link,
        all_reduce_factor=all_reduce_factor(link, measured),
        collectives=_collectives_of(measured),
    )


def _collectives_of(measured: LinkReadings) -> MeasuredCollectives | msgspec.UnsetType:
    """A line through each collective's times."""
    found = {one.collective: one.readings for one in measured.collectives}
    if measured.all_reduce_ranks < 2 or not found:
        return msgspec.UNSET
    lines = {
        name: fit_link(own) for name, own in {**found, "all_reduce": measured.all_reduce}.items()
    }
    return MeasuredCollectives(
        ranks=measured.all_reduce_ranks,
        **{
            name: MeasuredCollective(latency=line.latency, bandwidth=line.bandwidth)
            for name, line in lines.items()
        },
    )


def _network_of(probe: Probe) -> Network | None:
    if probe.network is None:
        return None
    is_nccl = probe.backend == "nccl"
    return fit_network(probe.network, probe.num_nodes, probe.gpus_per_node, is_nccl=is_nccl)


def _source(probe: Probe) -> str:
    readings = [r for kind in (probe.intra_node, probe.inter_node) if kind for r in kind.readings]
    spread = statistics.median(r.spread for r in readings)
    overhead = "" if probe.action_overhead is not None else "; the action overhead is not measured"
    return (
        f"autopart probe, {probe.created}: {counted(probe.num_nodes, 'node')} x {counted(probe.gpus_per_node, 'rank')} on "
        f"{probe.device_name}, {_transport(probe)}, torch {probe.torch}; medians, message times "
        f"scatter by {format_share(spread)} (interquartile range over median){overhead}"
    )


def _transport(probe: Probe) -> str:
    """The transport, with what changes its figures: its version and environment variables."""
    version = probe.backend if probe.nccl is None else f"{probe.backend} {probe.nccl}"
    changed = [f"{name}={value}" for name, value in probe.environment.items()]
    return ", ".join([version, *changed])


def notes_on_probe(probe: Probe) -> tuple[str, ...]:
    """Remarks for readers of the cluster file: noisy measurements, and figures that are missing."""
    notes: list[str] = []
    for name, kind in (("inside a node", probe.intra_node), ("across nodes", probe.inter_node)):
        if kind is not None:
            notes += _notes_on(f"{name}: messages", kind.readings)
    notes += _notes_on("copies to the host", probe.host)
    if probe.slowdown < 1.0:
        notes.append(
            f"ranks were faster together than alone ({probe.slowdown:.2f}): the machine was not at rest"
        )
    if probe.intra_node is None:
        notes.append(
            "each node has one rank: the link inside a node and the slowdown were not measured"
        )
    if probe.environment_differs:
        names = ", ".join(probe.environment_differs)
        notes.append(f"ranks differ in environment variables: {names}; start all ranks alike")
    if probe.network is not None:
        notes += _notes_on_network(probe, probe.network)
    return tuple(notes)


def _notes_on_network(probe: Probe, measured: NetworkReadings) -> Iterator[str]:
    if measured.left_out:
        yield (
            f"the time limit left out {counted(len(measured.left_out), 'measurement')}: "
            f"{'; '.join(measured.left_out)}; raise --limit"
        )
    rails = rails_of(measured, probe.gpus_per_node)
    if rails < probe.gpus_per_node:
        yield (
            f"{counted(probe.gpus_per_node, 'GPU')} of a node share {counted(rails, 'rail')}: prices are for all of "
            "them at once, and a lone group is faster"
        )


def _notes_on(what: str, readings: Sequence[Reading]) -> Iterator[str]:
    link = fit_link(readings)
    off, worst = max(
        zip(deviations(link, readings), readings, strict=True), key=lambda pair: pair[0]
    )
    if off > NOISY:
        yield (
            f"{what} of {format_bytes(worst.num_bytes)} are {format_share(off)} off the line of "
            f"{format_time(link.latency)} + bytes / {format_bandwidth(link.bandwidth)}"
        )
    scattered = max(readings, key=lambda reading: reading.spread)
    if scattered.spread > NOISY:
        yield (
            f"{what} of {format_bytes(scattered.num_bytes)} scatter by "
            f"{format_share(scattered.spread)} (interquartile range over median); probe on an idle "
            "machine"
        )
