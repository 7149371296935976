"""Seconds on a link: between ranks, or to host memory."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from autopart.cost.collectives import fabric_of
from autopart.records.cluster import Cluster, HostLink, Link
from autopart.units import Q


class StashCopies(NamedTuple):
    """Copies between a rank and host memory."""

    copy_time: Callable[[int], float]
    """Seconds for so many bytes in one direction, at the profile's speed."""
    overlaps: bool
    """Whether copies run beside compute."""


def send_time(link: Link | HostLink, num_bytes: Q, num_tensors: Q | int) -> Q:
    """Seconds for `num_tensors` messages with `num_bytes` together: a latency for each, then bandwidth."""
    return num_tensors * link.latency + num_bytes / link.bandwidth


def stash_copies(host: HostLink | None, speed: float) -> StashCopies | None:
    """The copies for ranks with `speed` relative to the profile's device; None without a host link."""
    if host is None:
        return None

    def copy_time(num_bytes: int) -> float:
        # `on_ranks` divides each layer time by `speed` later, and this one with them.
        return speed * send_time(host, num_bytes, 1)

    return StashCopies(copy_time, host.overlaps)


def link_across(cluster: Cluster) -> Link:
    """The link between two ranks on different nodes that share a rail.

    With a network record it is no faster than one GPU's share of the rails.
    """
    fabric, link = fabric_of(cluster), cluster.inter_node
    if fabric is None or fabric.share(1) >= link.bandwidth:
        return link
    return msgspec.structs.replace(link, bandwidth=fabric.share(1))


def link_off_rail(cluster: Cluster) -> Link:
    """The link between two ranks on different nodes and different rails."""
    network, link = cluster.network, link_across(cluster)
    if network is None or network.off_rail == 1.0:
        return link
    return msgspec.structs.replace(link, bandwidth=network.off_rail * link.bandwidth)
