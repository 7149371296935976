"""What a probe measured of a machine or cluster, and the cluster that its figures make.

Times of messages become a latency and a bandwidth by the line whose times and the measured ones have
the least sum of |log ratio|, so that a message of 4 bytes counts as much as one of 16 MiB, twice too long as
much as half as long, and one outlier moves nothing. Of the lines through two of the points, or through
one with a latency of 0, as least absolute deviations have them (Bloomfield and Steiger, 1983), all are tried.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from autopart.cluster import Cluster, HostLink, Link
from autopart.cost import all_reduce_time, send_time
from autopart.units import (
    Bytes,
    Count,
    PositiveCount,
    Seconds,
    format_bandwidth,
    format_bytes,
    format_share,
    format_time,
)

NOISY = 0.25
"""Spread of a measurement, or deviation of the fitted line, above which the probe says so."""
HIDDEN = 0.5
"""Share of a send that must vanish beside compute for sends to count as overlapping."""

Share = Annotated[float, msgspec.Meta(description="share, 1 is all")]


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages or copies of one size."""

    num_bytes: Bytes
    time: Seconds
    """Median of one, on the slowest pair of ranks."""
    spread: Share
    """Interquartile range over median."""
    count: PositiveCount


class LinkReadings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of link, by the sizes of what was sent."""

    readings: tuple[Reading, ...]
    num_pairs: PositiveCount
    """Pairs of ranks that were measured; the slowest counts."""
    all_reduce: tuple[Reading, ...] = ()
    all_reduce_ranks: Count = 0
    """Ranks of the all-reduces."""
    hidden: Share = 0.0
    """Of a send as long as the compute beside it, the share that the two together do not take more."""


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that was measured, before anything was concluded from it."""

    device: Literal["cpu", "cuda"]
    device_name: str
    """The GPU's own name, or the processor's."""
    gpu: str
    """What the cluster calls the device."""
    backend: str
    num_nodes: PositiveCount
    gpus_per_node: PositiveCount
    intra_node: LinkReadings | None
    """None where a node has one rank."""
    inter_node: LinkReadings | None
    """None where there is one node."""
    host: tuple[Reading, ...]
    """Copies between a rank and the memory of its node."""
    slowdown: float
    """Of a block of a transformer, forward and backward, on the slowest rank."""
    slowdown_of_copies: float
    """Of additions that do nothing but read and write memory: the most that neighbours can do."""
    action_overhead: Seconds | None
    """None where it was not measured."""
    memory_bytes: Bytes
    """Of one rank."""
    reserve_bytes: Bytes
    host_memory_bytes: Bytes | None
    torch: str
    created: str
    """ISO 8601, UTC."""


class ProbeSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `autopart probe --json` prints."""

    path: str
    """The cluster file that was written."""
    cluster: Cluster
    probe: Probe
    notes: tuple[str, ...]


def fit_link(readings: Sequence[Reading]) -> Link:
    """The latency and bandwidth with the least sum of |log(predicted / time)| over at least two sizes."""
    return min(_lines(readings), key=lambda link: log_deviation(link, readings))


def log_deviation(link: Link, readings: Sequence[Reading]) -> float:
    """The sum of |log(predicted / time)|."""
    ratios = (send_time(link, r.num_bytes, 1) / r.time for r in readings)
    return sum(abs(math.log(ratio)) if ratio > 0.0 else math.inf for ratio in ratios)


def deviations(link: Link, readings: Sequence[Reading]) -> list[float]:
    """How far each reading is from what the link says, as a share of the reading."""
    return [abs(send_time(link, r.num_bytes, 1) / r.time - 1.0) for r in readings]


def _lines(readings: Sequence[Reading]) -> Iterator[Link]:
    for reading in readings:
        yield Link(bandwidth=max(reading.num_bytes, 1) / reading.time)
    for a, b in itertools.combinations(readings, 2):
        if b.num_bytes != a.num_bytes and b.time > a.time:
            bandwidth = (b.num_bytes - a.num_bytes) / (b.time - a.time)
            latency = a.time - a.num_bytes / bandwidth
            if bandwidth > 0.0 and latency >= 0.0:
                yield Link(bandwidth=bandwidth, latency=latency)


def all_reduce_factor(link: Link, measured: LinkReadings) -> float:
    """Measured all-reduces over the ring of `link`, the median over the sizes; 1 where none was."""
    ratios = [
        r.time / all_reduce_time(link, r.num_bytes, measured.all_reduce_ranks)
        for r in measured.all_reduce
    ]
    return statistics.median(ratios) if ratios else 1.0


def cluster_of_probe(probe: Probe) -> Cluster:
    """The cluster as it was measured. A kind of link that no pair of ranks uses has the figures of
    the other; sends overlap compute where most of one vanishes beside it on the slowest link."""
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
        host_link=HostLink(
            bandwidth=host.bandwidth, latency=host.latency, overlaps=probe.device == "cuda"
        ),
        host_memory_bytes=probe.host_memory_bytes,
        action_overhead=probe.action_overhead or 0.0,
        compute_slowdown=max(1.0, probe.slowdown),
        sends_overlap=kinds[-1].hidden >= HIDDEN,
        source=_source(probe),
    )


def _link_of(measured: LinkReadings) -> Link:
    link = fit_link(measured.readings)
    return msgspec.structs.replace(link, all_reduce_factor=all_reduce_factor(link, measured))


def _source(probe: Probe) -> str:
    readings = [r for kind in (probe.intra_node, probe.inter_node) if kind for r in kind.readings]
    spread = statistics.median(r.spread for r in readings)
    overhead = (
        "" if probe.action_overhead is not None else "; the overhead of an action is not measured"
    )
    return (
        f"autopart probe, {probe.created}: {probe.num_nodes} nodes x {probe.gpus_per_node} ranks on "
        f"{probe.device_name}, {probe.backend}, torch {probe.torch}; medians, times of messages "
        f"scatter by {format_share(spread)} (interquartile range over median){overhead}"
    )


def notes_on_probe(probe: Probe) -> tuple[str, ...]:
    """What the reader of the cluster should know."""
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
        notes.append("one rank a node: the link inside a node was not measured, nor slowdown")
    return tuple(notes)


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
