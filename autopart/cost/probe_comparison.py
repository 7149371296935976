"""A probe's messages over the network, beside the times that the cluster file predicts."""

import math
from collections.abc import Iterator, Sequence

from autopart.cost.collectives import Fabric, GroupShape, fabric_of, price_of
from autopart.cost.links import link_across, link_off_rail, send_time
from autopart.cost.probed_network import shares_rails
from autopart.records.cluster import Cluster, Link
from autopart.records.readings import (
    CollectiveReadings,
    MessageComparison,
    NetworkReadings,
    Reading,
    SendReadings,
)
from autopart.text import counted
from autopart.units import format_bytes, format_share, format_time

FAR = 0.25
"""Distance from the prediction, as a share of it, above which a note says so."""


def compare_network(cluster: Cluster, measured: NetworkReadings) -> tuple[MessageComparison, ...]:
    """Every measured send and collective with its price on the cluster, which has a network."""
    fabric = fabric_of(cluster)
    assert fabric is not None, "the network was measured"
    return (
        *(pair for one in measured.sends for pair in _sends(cluster, fabric, one)),
        *(pair for one in measured.collectives for pair in _collectives(fabric, one)),
    )


def _sends(cluster: Cluster, fabric: Fabric, one: SendReadings) -> Iterator[MessageComparison]:
    link = _link(cluster, one)
    what = f"send, {one.path}" + (f", {one.at_once} at once" if one.at_once > 1 else "")
    for reading in one.readings:
        yield _pair(what, reading, send_time(link, reading.num_bytes, 1), one, fabric)


def _link(cluster: Cluster, one: SendReadings) -> Link:
    match one.path:
        case "same node":
            return cluster.intra_node
        case "same rail":
            return link_across(cluster)
        case _:
            return link_off_rail(cluster)


def _collectives(fabric: Fabric, one: CollectiveReadings) -> Iterator[MessageComparison]:
    price = price_of(
        fabric, one.collective, GroupShape(one.ranks, one.nodes, one.ranks // one.nodes)
    )
    groups = f"{one.at_once} x " if one.at_once > 1 else ""
    what = (
        f"{one.collective.replace('_', '-')}, {groups}{counted(one.ranks, 'rank')} on "
        f"{counted(one.nodes, 'node')}"
    )
    for reading in one.readings:
        yield _pair(what, reading, float(price.seconds(reading.num_bytes)), one, fabric)


def _pair(
    what: str,
    reading: Reading,
    predicted: float,
    one: SendReadings | CollectiveReadings,
    fabric: Fabric,
) -> MessageComparison:
    return MessageComparison(
        what=what,
        num_bytes=reading.num_bytes,
        measured=reading.time,
        predicted=predicted,
        shares=shares_rails(one, fabric.gpus_per_node, fabric.network.rails),
    )


def notes_on_comparisons(compared: Sequence[MessageComparison]) -> tuple[str, ...]:
    """One line for each send or collective with a size more than `FAR` from its prediction."""
    by_name: dict[str, list[MessageComparison]] = {}
    for one in compared:
        if one.shares:
            by_name.setdefault(one.what, []).append(one)
    worst = [max(group, key=lambda one: abs(error_of(one))) for group in by_name.values()]
    return tuple(
        f"{one.what}: {format_bytes(one.num_bytes)} take {format_time(one.measured)}, "
        f"{format_share(abs(error_of(one)))} {'more' if error_of(one) > 0.0 else 'less'} than the "
        f"predicted {format_time(one.predicted)}"
        for one in worst
        if abs(error_of(one)) > FAR
    )


def error_of(one: MessageComparison) -> float:
    """Measured over predicted seconds, minus 1."""
    return one.measured / one.predicted - 1.0 if one.predicted else math.inf
