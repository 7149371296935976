"""Collectives over a link, as a probe measured them on a cluster without a network record."""

from typing import Annotated

import msgspec

from autopart.units import LARGEST, LEAST_BANDWIDTH, MOST_BANDWIDTH, Seconds

Bandwidth = Annotated[
    float,
    msgspec.Meta(ge=LEAST_BANDWIDTH, le=MOST_BANDWIDTH, description="bytes per second"),
]


class MeasuredCollective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A collective of some bytes on each rank takes `latency + bytes / bandwidth` seconds.

    The bytes are those that a rank has in the end, or had at the start of a reduce-scatter.
    """

    bandwidth: Bandwidth
    latency: Seconds = 0.0


class MeasuredCollectives(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The collectives among so many ranks."""

    ranks: Annotated[int, msgspec.Meta(ge=2, le=LARGEST)]
    all_reduce: MeasuredCollective
    all_gather: MeasuredCollective
    reduce_scatter: MeasuredCollective
    all_to_all: MeasuredCollective
