"""A split of a dnn-partitioning instance, and its bound."""

from typing import NamedTuple

from autopart.peers.dnn_partitioning.charges import DeviceStage


class SplitAnswer(NamedTuple):
    """A split, its objective, and a bound for all splits."""

    stages: tuple[DeviceStage, ...]
    """In pipeline order where the split is contiguous; accelerators first otherwise."""
    objective: float
    """The largest charge on a device, in the file's unit."""
    lower_bound: float
    """No split has a smaller largest charge."""
    proof: str
    """The basis for the lower bound."""
