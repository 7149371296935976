"""Messages as a probe measured them, by size, and those over a cluster's network.

autopart/cost/probed_network.py turns the latter into a network record.
"""

from typing import Annotated, Literal

import msgspec

from autopart.units import Bytes, PositiveCount, Seconds

Share = Annotated[float, msgspec.Meta(description="share, 1 is all")]
Path = Literal["same node", "same rail", "other rail"]
Measured = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages or copies with one size."""

    num_bytes: Bytes
    time: Seconds
    """Median seconds for one message or copy, on the slowest rank."""
    spread: Share
    """Interquartile range over median."""
    count: PositiveCount
    """Number of measured messages or copies."""


class SendReadings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sends over one kind of path, size by size."""

    path: Path
    """Between neighbours on a node, or between nodes over one rail or from one rail to another."""
    at_once: PositiveCount
    """Ranks of each node that send, or receive, at once."""
    readings: tuple[Reading, ...]


class CollectiveReadings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One collective over groups of one shape, size by size."""

    collective: Measured
    ranks: PositiveCount
    """Ranks in each group."""
    nodes: PositiveCount
    """Nodes on which each group lies, with equally many ranks on each."""
    at_once: PositiveCount
    """Groups on the same nodes that were measured at once."""
    readings: tuple[Reading, ...]


class ComputeReadings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Matrix products beside an all-reduce over all ranks, on the slowest rank."""

    alone: Seconds
    """Seconds of the matrix products without an all-reduce."""
    beside: Seconds
    """Seconds of the same matrix products while the all-reduce runs."""


class NetworkReadings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sends, collectives and compute beside them, between all ranks."""

    sends: tuple[SendReadings, ...]
    collectives: tuple[CollectiveReadings, ...]
    compute: ComputeReadings | None = None
    """Null where time ran out before."""
    took: Seconds = 0.0
    """Seconds that the measurement took."""
    left_out: tuple[str, ...] = ()
    """Measurements for which the time limit left no time."""


class MessageComparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured time beside the one that the cluster file predicts."""

    what: str
    """The send or collective, in words."""
    num_bytes: Bytes
    measured: Seconds
    predicted: Seconds
    shares: bool = True
    """Whether the price is meant for it: all GPUs that share a rail were busy. A lone group is faster."""
