"""The choices of a net's nodes for one width, as arrays; widths, replica counts and work."""

from typing import NamedTuple

import numpy as np

from autopart.peers.piper.charges import Flags, Floats, Ints, PiperChoice, PiperLimits, PiperNet


class WidthChoices(NamedTuple):
    """The nodes' two choices for one width, arrays at [choice, node].

    A node with one choice has it twice.
    """

    width: int
    """Devices per replica."""
    known: Flags
    """[node] whether it has a choice."""
    compute: Floats
    """Seconds."""
    weights: Floats
    """Bytes."""
    stash: Floats
    """Bytes per microbatch in flight."""
    state: Floats
    """Bytes independent of the microbatches in flight."""
    entering: Floats
    """[choice, edge] bytes in (2) where the edge enters a stage, by its target's choice."""
    leaving: Floats
    """[choice, edge] bytes in (2) where the edge leaves a stage, by its source's choice."""


def width_choices(net: PiperNet, width: int) -> WidthChoices:
    """The two choices for each node on `width` devices."""
    nothing = (PiperChoice("", 0.0, 0.0, 0.0, 0.0, {}, {}),)
    rows = [node.choices.get(width, nothing) for node in net.nodes]
    both = [(row[0], row[-1]) for row in rows]
    received = [[c.receive_bytes.get(e.source, 0.0) for c in both[e.target]] for e in net.edges]
    sent = [[c.send_bytes.get(e.target, 0.0) for c in both[e.source]] for e in net.edges]
    own = np.array([e.bytes for e in net.edges])
    return WidthChoices(
        width=width,
        known=np.array([width in node.choices for node in net.nodes]),
        compute=np.array([[c.time for c in row] for row in both]).T,
        weights=np.array([[c.weight_bytes for c in row] for row in both]).T,
        stash=np.array([[c.stash_bytes for c in row] for row in both]).T,
        state=np.array([[c.state_bytes for c in row] for row in both]).T,
        entering=2 * (own + np.array(received).reshape(-1, 2).T),
        leaving=2 * (own + np.array(sent).reshape(-1, 2).T),
    )


def least_work(net: PiperNet) -> Floats:
    """For each node the least device-seconds for its compute, over all widths and choices."""
    return np.array(
        [
            min((width * c.time for width, row in node.choices.items() for c in row), default=0.0)
            for node in net.nodes
        ]
    )


def replica_counts(limits: PiperLimits) -> Ints:
    """Every d: it divides the batch and does not exceed the devices."""
    counts = np.arange(1, most_replicas(limits) + 1)
    return counts[limits.microbatches % counts == 0]


def most_replicas(limits: PiperLimits) -> int:
    """The most replicas over all stages: never more than the microbatches in a batch."""
    return min(limits.microbatches, limits.devices)


def all_widths(net: PiperNet) -> list[int]:
    """Every width that some node has a choice for, ascending."""
    return sorted({width for node in net.nodes for width in node.choices})
