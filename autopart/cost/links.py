"""Seconds on a link: between ranks, or to the memory of the host."""

from autopart.cluster import HostLink, Link
from autopart.stage_load import Number
from autopart.ways import HostWay


def send_time(link: Link | HostLink, num_bytes: Number, num_tensors: Number) -> Number:
    """Seconds for `num_tensors` messages of `num_bytes` in all: latency each, then bandwidth."""
    return num_tensors * link.latency + num_bytes / link.bandwidth


def host_way(host: HostLink | None, speed: float) -> HostWay | None:
    """The way to the host for ranks of `speed`, relative to the profile's device; in the seconds of that device,
    as those of layers are."""
    if host is None:
        return None

    def copy_time(num_bytes: int) -> float:
        return speed * send_time(host, num_bytes, 1)

    return HostWay(copy_time, host.overlaps)
