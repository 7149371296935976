"""Piper's charges for a stage (Tarnawski, Narayanan, Phanishayee, NeurIPS 2021).

Symbols   S      the nodes in a stage;  d, t  its data- and tensor-parallel degrees
          p, w   a node's time per microbatch on t devices, and its weight bytes on one device
          a, b   bytes on one device: a y + b with y microbatches in flight
          c, f, g   bytes on an edge (u, v): c its own, f added by v's choice at its end, g added by
                 u's choice at its start
          N      microbatches per batch;  M  bytes per device;  B  bytes per second out of a device

    time(S) = sum p / d                                                                         (1)
            + [ sum 2 (c + f) over edges into S + sum 2 (c + g) over edges out of S ] / (d B)    (2)
            + sum 4 (d - 1) / d w / N / B                                                       (3)
    memory(S) = sum (a y + b) <= M                                                              (4)

A transfer counts on each edge and on both ends, there and back (2). The weights' gradients are
summed once per batch (3). Everything adds up, nothing overlaps.

For each degree t a node has one or two choices (p, w, a, b, f, g), as a rule with and without
recomputation. All nodes start with the choice that adds less time. While (4) does not hold, nodes
change to their other choice, in the order of extra time per byte saved, with ties in file order.
Nothing is changed back. So this is a heuristic for a knapsack problem, and part of Piper's cost
model. It may save more than it must. A stage may even cost less with more microbatches in flight.

Bytes are real numbers here, unlike in autopart's own profiles, since the files hold fractions.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, overload

import networkx as nx
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SMALLEST_SAVING = 1e-9
"""Bytes that count as none, both in a choice's saving and in the bytes still to be saved."""


class PiperChoice(NamedTuple):
    """One choice for a node on some number of devices."""

    name: str
    time: float
    """Seconds for forward and backward per microbatch."""
    weight_bytes: float
    """Weight bytes on one device."""
    stash_bytes: float
    """Bytes for each microbatch in flight."""
    state_bytes: float
    """Bytes independent of the microbatches in flight."""
    receive_bytes: Mapping[int, float]
    """Bytes added to each incoming edge, by the position that the edge's other node has."""
    send_bytes: Mapping[int, float]
    """Bytes added to each outgoing edge, by the position that the edge's other node has."""


class PiperNode(NamedTuple):
    """A layer."""

    id: int
    name: str
    choices: Mapping[int, tuple[PiperChoice, ...]]
    """By tensor-parallel degree, one or two each."""


class PiperEdge(NamedTuple):
    """A transfer between two nodes, named by their positions in the file."""

    source: int
    target: int
    bytes: float


class PiperLimits(NamedTuple):
    """The devices, and the microbatches per batch."""

    devices: int
    """Device count."""
    memory_bytes: float
    """Bytes on one device."""
    bandwidth: float
    """Bytes per second out of a device."""
    microbatches: int
    """Microbatches per batch; data-parallel degrees divide it."""


class PiperNet(NamedTuple):
    """A model: nodes in file order, edges without circles."""

    nodes: tuple[PiperNode, ...]
    edges: tuple[PiperEdge, ...]


class StagePrice(NamedTuple):
    """One stage's time, bytes and choices."""

    time: float
    """Seconds per microbatch."""
    memory_bytes: float
    """Bytes on one device."""
    choices: tuple[int, ...]
    """For each node in the stage, in ascending order, its choice's position."""


def topological_order(net: PiperNet) -> tuple[int, ...]:
    """Positions of the nodes with every edge forward, as close to file order as possible."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(net.nodes)))
    graph.add_edges_from((edge.source, edge.target) for edge in net.edges)
    return tuple(nx.lexicographical_topological_sort(graph))


@overload
def work(
    compute: float, moved_bytes: float, weight_bytes: float, replicas: int, limits: PiperLimits
) -> float: ...
@overload
def work(
    compute: Floats,
    moved_bytes: Floats,
    weight_bytes: Floats,
    replicas: int | Ints,
    limits: PiperLimits,
) -> Floats: ...
def work(
    compute: float | Floats,
    moved_bytes: float | Floats,
    weight_bytes: float | Floats,
    replicas: int | Ints,
    limits: PiperLimits,
) -> float | Floats:
    """Seconds over all replicas in a stage, (1)-(3) times d, or the difference between two choices."""
    synced_bytes = 4 * (replicas - 1) * weight_bytes / limits.microbatches
    return compute + (moved_bytes + synced_bytes) / limits.bandwidth


def price(
    net: PiperNet,
    limits: PiperLimits,
    stage: Collection[int],
    width: int,
    replicas: int,
    in_flight: int,
) -> StagePrice | None:
    """The nodes at positions `stage` on `replicas` x `width` devices with `in_flight` microbatches.

    None where a node has no choice for that width, or memory is too small.
    """
    members = sorted(stage)
    choices = [net.nodes[v].choices.get(width, ()) for v in members]
    if not all(choices):
        return None
    # Step 1: bytes moved, bytes needed and extra work, for each choice.
    moved = _moved_bytes(net, members, choices)
    needs = [[c.stash_bytes * in_flight + c.state_bytes for c in row] for row in choices]
    extra = [
        _extra_work(row, sizes, replicas, limits) for row, sizes in zip(choices, moved, strict=True)
    ]
    # Step 2: the faster choice for each node, then Piper's changes until the stage fits.
    taken = [1 if more < 0 else 0 for more in extra]
    if not _save(taken, extra, needs, limits.memory_bytes):
        return None
    # Step 3: add up.
    chosen = list(zip(choices, moved, taken, strict=True))
    return StagePrice(
        time=sum(
            work(row[at].time, sizes[at], row[at].weight_bytes, replicas, limits)
            for row, sizes, at in chosen
        )
        / replicas,
        memory_bytes=sum(row[at] for row, at in zip(needs, taken, strict=True)),
        choices=tuple(taken),
    )


def _extra_work(
    row: tuple[PiperChoice, ...], moved: list[float], replicas: int, limits: PiperLimits
) -> float:
    """Seconds that a node's second choice adds to its first."""
    first, last = row[0], row[-1]
    compute, weights = last.time - first.time, last.weight_bytes - first.weight_bytes
    return work(compute, moved[-1] - moved[0], weights, replicas, limits)


def _moved_bytes(
    net: PiperNet, members: list[int], choices: list[tuple[PiperChoice, ...]]
) -> list[list[float]]:
    """The bytes in (2) for each node in the stage and each of its choices."""
    row_of = {v: row for row, v in enumerate(members)}
    moved = [[0.0] * len(row) for row in choices]
    for source, target, size in net.edges:
        # An edge with both ends in the stage, or with none, moves nothing here.
        if (source in row_of) == (target in row_of):
            continue
        if target in row_of:
            row = row_of[target]
            added = [c.receive_bytes[source] for c in choices[row]]
        else:
            row = row_of[source]
            added = [c.send_bytes[target] for c in choices[row]]
        moved[row] = [m + 2 * (size + more) for m, more in zip(moved[row], added, strict=True)]
    return moved


def _save(
    taken: list[int], extra: list[float], needs: list[list[float]], memory_bytes: float
) -> bool:
    """Change `taken` until the stage fits, as Piper does; False where nothing is enough."""
    excess = sum(row[at] for row, at in zip(needs, taken, strict=True)) - memory_bytes
    if excess <= 0:
        return True
    if sum(map(min, needs)) > memory_bytes:
        return False
    # Step 1: rank the changes by extra time per byte saved.
    savings = [row[at] - row[-1 - at] for row, at in zip(needs, taken, strict=True)]
    worth = [
        (abs(extra[v]) / saving, v) for v, saving in enumerate(savings) if saving > SMALLEST_SAVING
    ]
    # Step 2: change nodes in this order until the stage fits.
    for _, v in sorted(worth):
        taken[v] = 1 - taken[v]
        excess -= savings[v]
        if excess < SMALLEST_SAVING:
            break
    return True
