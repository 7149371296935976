"""A probe: measurements on a machine or cluster, before any conclusion.

autopart/cost/probed_cluster.py turns it into a cluster file.
"""

from typing import Literal

import msgspec

from autopart.records.cluster import Cluster
from autopart.records.readings import (
    CollectiveReadings,
    MessageComparison,
    NetworkReadings,
    Reading,
    Share,
)
from autopart.units import Bytes, Count, PositiveCount, Seconds


class LinkReadings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measurements on one kind of link, size by size."""

    readings: tuple[Reading, ...]
    num_pairs: PositiveCount
    """Number of measured pairs of ranks; the slowest pair counts."""
    all_reduce: tuple[Reading, ...] = ()
    """All-reduces over the link."""
    all_reduce_ranks: Count = 0
    """Number of ranks in each all-reduce."""
    collectives: tuple[CollectiveReadings, ...] = ()
    """The other collectives over the link, among as many ranks."""
    hidden: Share = 0.0
    """Share of a send that vanishes beside compute that takes as long as the send."""


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All measurements of `autopart probe`."""

    device: Literal["cpu", "cuda"]
    device_name: str
    """The GPU's or the processor's own name."""
    gpu: str
    """The device's name in the cluster file."""
    backend: str
    """The transport for messages: gloo or nccl."""
    num_nodes: PositiveCount
    gpus_per_node: PositiveCount
    intra_node: LinkReadings | None
    """Messages between ranks on the same node; None where each node has one rank."""
    inter_node: LinkReadings | None
    """Messages between nodes; None where there is one node."""
    host: tuple[Reading, ...]
    """Copies between a rank and its node's memory."""
    slowdown: float
    """Compute slowdown in a transformer block, forward and backward, on the slowest rank."""
    slowdown_of_copies: float
    """Slowdown in additions that only read and write memory: the most that neighbours can cause."""
    action_overhead: Seconds | None
    """Fixed seconds per action; None where they were not measured."""
    memory_bytes: Bytes
    """Device memory per rank."""
    reserve_bytes: Bytes
    """Memory that the framework uses on each rank."""
    host_memory_bytes: Bytes | None
    """Memory per node; None where it is unknown."""
    network: NetworkReadings | None = None
    """Messages between all ranks; null where they were not asked for."""
    torch: str
    """The version of torch."""
    nccl: str | None = None
    """The version of NCCL; null where it is not in use."""
    environment: dict[str, str] = {}
    """Environment variables that change the figures, on rank 0."""
    environment_differs: tuple[str, ...] = ()
    """Those variables of which some other rank has another value."""
    created: str
    """Date and time in ISO 8601, UTC."""


class ProbeSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document that `autopart probe --json` prints."""

    path: str
    """The cluster file that was written."""
    cluster: Cluster
    probe: Probe
    comparisons: tuple[MessageComparison, ...] = ()
    """Messages of the network, as they were measured and as the cluster file predicts them."""
    notes: tuple[str, ...]
    """Remarks for the reader, such as noisy measurements."""
