"""Points on a stage's frontier (autopart/activations/frontier.py), as columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cost.stage_totals import Array


class Points(NamedTuple):
    """One stage's points, arrays with shape (points,): fewest extra seconds first.

    Points with equal seconds are ordered by bytes on the host, then by changed layers.
    """

    extra_time: Array
    """Seconds added to each microbatch, forward and backward together."""
    forward_wait: Array
    """Seconds in `extra_time` that the forward waits for copies to the host."""
    freed_bytes: Array
    """Stash freed for each microbatch in flight."""
    workspace_bytes: Array
    """u, in bytes."""
    input_grad_workspace_bytes: Array
    """v, in bytes; 0 where backwards are whole."""
    first_backward_bytes: Array
    """z, in bytes; 0 where no stage has all its microbatches in flight before its first backward."""
    transit_bytes: Array
    """p: stash bytes in the last offloaded layer."""
    leaving_time: Array
    """t in forward: seconds left for the last copy to the host."""
    coming_time: Array
    """t in backward: seconds left for the last copy from the host."""
    host_bytes: Array
    """Stash in host memory for each microbatch in flight."""
    changed_layers: Array
    """Layers that do not keep their stash."""
    chosen: Array | None
    """The policies as bits in a whole number (`policies_of_bits`); None where only the figures are needed."""


def no_layers(*, with_policies: bool = False) -> Points:
    """The frontier before the first layer."""
    seconds, sizes = np.zeros(1), np.zeros(1, dtype=np.int64)
    chosen = np.zeros(1, dtype=object) if with_policies else None
    return Points(
        seconds, seconds, sizes, sizes, sizes, sizes, sizes, seconds, seconds, sizes, sizes, chosen
    )


def joined(several: Sequence[Points]) -> Points:
    """The points of several frontiers in a row."""
    *columns, chosen = zip(*several, strict=True)
    return Points(
        *(np.concatenate(column) for column in columns),
        chosen=None if chosen[0] is None else np.concatenate(chosen),
    )


def points_at(points: Points, places: Array) -> Points:
    """Some of the points, by their places."""
    *columns, chosen = points
    kept = [column[places] for column in columns]
    return Points(*kept, chosen=None if chosen is None else chosen[places])


def even_places(left: Array, freed: Array, most: int) -> Array:
    """`most` among the points `left`, spread evenly over the bytes that they free, in their order."""
    by_bytes = left[np.argsort(freed[left], kind="stable")]
    places = np.linspace(0, len(left) - 1, most).astype(int)
    return np.sort(by_bytes[places])
