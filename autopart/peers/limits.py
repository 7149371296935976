"""Limits that a peer's file does not give, or that replace the file's own; each peer takes some."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from autopart.errors import UsageError
from autopart.text import known_names

MOST_GPUS: Mapping[str, int] = MappingProxyType({"pipedream": 1024, "piper": 2**18})
"""The most GPUs that each planner's search is run for: its tables have a row for each GPU."""
MOST_MICROBATCHES = 2**20
"""The most microbatches per batch."""
COMPRESSION = 1.0
"""PipeDream's activation compression ratio: transfers count as they are."""


class PeerLimits(NamedTuple):
    """Limits for a peer; None where nothing is given."""

    gpus: tuple[int, ...] | None = None
    """GPUs; with two levels GPUs per node, then nodes."""
    bandwidths: tuple[float, ...] | None = None
    """Bytes per second, for each level."""
    memory_bytes: float | None = None
    """Bytes on one GPU."""
    num_microbatches: int | None = None
    """Microbatches per batch."""
    one_gpu_per_stage: bool = False
    """Whether each stage runs on one GPU."""
    all_sends: bool = False
    """Whether PipeDream's first stages pay for their sends too."""
    compression: float | None = COMPRESSION
    """PipeDream's activation compression ratio; None counts no transfers."""
    contiguous: bool = True
    """Whether a device's nodes must be contiguous."""
    time_limit: float = 60.0
    """Seconds."""


_TAKEN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "dnn-partitioning": frozenset({"contiguous", "time_limit"}),
        "pipedream": frozenset(PeerLimits._fields) - {"num_microbatches", "contiguous"},
        "piper": frozenset({"gpus", "bandwidths", "memory_bytes", "num_microbatches"}),
    }
)
"""The limits that each convention takes."""

CONVENTIONS = tuple(_TAKEN)
"""The planners whose objectives are known."""


def check_limits(convention: str, limits: PeerLimits) -> None:
    """Raise UsageError on an unknown convention, on a limit that it does not take, or on absurd counts."""
    if convention not in CONVENTIONS:
        raise UsageError(
            f"there is no objective '{convention}'; {known_names(convention, CONVENTIONS)}"
        )
    # A limit that equals its default counts as not given.
    defaults = PeerLimits()
    given = [
        name for name in PeerLimits._fields if getattr(limits, name) != getattr(defaults, name)
    ]
    unknown = [name for name in given if name not in _TAKEN[convention]]
    if unknown:
        raise UsageError(
            f"{convention} takes no {_said(unknown[0])}; it takes: "
            + ", ".join(_said(name) for name in PeerLimits._fields if name in _TAKEN[convention])
        )
    gpus, most = math.prod(limits.gpus or ()), MOST_GPUS.get(convention, 1)
    if gpus > most:
        raise UsageError(f"{gpus} GPUs are too many for {convention}; it takes at most {most}")
    if (limits.num_microbatches or 0) > MOST_MICROBATCHES:
        raise UsageError(
            f"{limits.num_microbatches} microbatches are too many; at most {MOST_MICROBATCHES}"
        )


def _said(name: str) -> str:
    """A limit's name in messages."""
    others = {
        "num_microbatches": "microbatches",
        "memory_bytes": "memory",
        "contiguous": "choice of contiguity",
    }
    return others.get(name, name.replace("_", " "))
