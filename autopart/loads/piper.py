"""What Piper charges a stage (Tarnawski, Narayanan, Phanishayee, NeurIPS 2021).

Symbols   S      the nodes of a stage;  d, t  its data- and tensor-parallel degrees
          p, w   a node's time for a microbatch on t devices, and the weight bytes of one device
          a, b   bytes of one device: a y + b with y microbatches in flight
          c, f, g   bytes on an edge (u, v): c its own, f what v's choice adds where it comes in, g
                 what u's choice adds where it goes out
          N      microbatches of a batch;  M  bytes of a device;  B  bytes a second out of a device

    time(S) = sum p / d                                                                         (1)
            + [ sum 2 (c + f) over edges into S + sum 2 (c + g) over edges out of S ] / (d B)    (2)
            + sum 4 (d - 1) / d w / N / B                                                       (3)
    memory(S) = sum (a y + b) <= M                                                              (4)

A transfer counts on each edge and on both ends, there and back (2); the weights' gradients are
summed once a batch (3). Everything adds up, nothing overlaps. For each degree t a node has one or two
choices of (p, w, a, b, f, g), as a rule with and without recomputation. All nodes take the choice
that adds less time; while (4) does not hold, the nodes change to their other choice in the order of
extra time for a byte saved, ties in the order of the file, until it holds. Nothing is changed back,
so this is a heuristic for a knapsack problem and part of Piper's cost model: it may save more than it
must, and a stage may even cost less with more microbatches in flight.

Bytes are real numbers here, unlike in autopart's own profiles, since the files hold fractions.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import networkx as nx

Number = Any
"""A float, or a numpy array of them."""

SMALLEST_SAVING = 1e-9
"""Bytes that count as none, both of a choice's saving and of what is still to be saved."""


class Choice(NamedTuple):
    """One way to run a node on some number of devices."""

    name: str
    time: float
    """Seconds of forward and backward for one microbatch."""
    weight_bytes: float
    stash_bytes: float
    """Bytes for each microbatch in flight."""
    state_bytes: float
    """Bytes whatever is in flight."""
    receive_bytes: Mapping[int, float]
    """What it adds to each edge that comes in, by the position of the edge's other node."""
    send_bytes: Mapping[int, float]


class Node(NamedTuple):
    """A layer."""

    id: int
    name: str
    choices: Mapping[int, tuple[Choice, ...]]
    """By tensor-parallel degree, one or two each."""


class Edge(NamedTuple):
    """A transfer between two nodes, named by their positions in the file."""

    source: int
    target: int
    bytes: float


class Limits(NamedTuple):
    """What the stages run on."""

    devices: int
    memory_bytes: float
    bandwidth: float
    microbatches: int
    """Microbatches of a batch; data-parallel degrees divide it."""


class Net(NamedTuple):
    """A model: nodes in the order of the file, edges without circles."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


class Price(NamedTuple):
    """What one stage costs."""

    time: float
    memory_bytes: float
    choices: tuple[int, ...]
    """For each node of the stage, in ascending order, the position of its choice."""


def topological_order(net: Net) -> tuple[int, ...]:
    """Positions of the nodes with every edge forward, as close to the file's order as that allows."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(net.nodes)))
    graph.add_edges_from((edge.source, edge.target) for edge in net.edges)
    return tuple(nx.lexicographical_topological_sort(graph))


def work(
    compute: Number, moved_bytes: Number, weight_bytes: Number, replicas: Number, limits: Limits
) -> Number:
    """Seconds of all replicas of a stage together, (1)-(3) times d, or what two choices differ by."""
    synced_bytes = 4 * (replicas - 1) * weight_bytes / limits.microbatches
    return compute + (moved_bytes + synced_bytes) / limits.bandwidth


def price(
    net: Net, limits: Limits, stage: Collection[int], width: int, replicas: int, in_flight: int
) -> Price | None:
    """What the nodes at the positions `stage` cost on `replicas` x `width` devices with `in_flight`
    microbatches; None where a node has no choice for that width, or memory is too small."""
    members = sorted(stage)
    choices = [net.nodes[v].choices.get(width, ()) for v in members]
    if not all(choices):
        return None
    moved = _moved_bytes(net, members, choices)
    needs = [[c.stash_bytes * in_flight + c.state_bytes for c in row] for row in choices]
    extra = [
        _extra_work(row, sizes, replicas, limits) for row, sizes in zip(choices, moved, strict=True)
    ]
    taken = [1 if more < 0 else 0 for more in extra]
    if not _save(taken, extra, needs, limits.memory_bytes):
        return None
    chosen = list(zip(choices, moved, taken, strict=True))
    return Price(
        time=sum(
            work(row[at].time, sizes[at], row[at].weight_bytes, replicas, limits)
            for row, sizes, at in chosen
        )
        / replicas,
        memory_bytes=sum(row[at] for row, at in zip(needs, taken, strict=True)),
        choices=tuple(taken),
    )


def _extra_work(
    row: tuple[Choice, ...], moved: list[float], replicas: int, limits: Limits
) -> float:
    """What a node's second choice adds to its first."""
    first, last = row[0], row[-1]
    compute, weights = last.time - first.time, last.weight_bytes - first.weight_bytes
    return work(compute, moved[-1] - moved[0], weights, replicas, limits)


def _moved_bytes(
    net: Net, members: list[int], choices: list[tuple[Choice, ...]]
) -> list[list[float]]:
    """The bytes of (2) for each node of the stage and each of its choices."""
    row_of = {v: row for row, v in enumerate(members)}
    moved = [[0.0] * len(row) for row in choices]
    for source, target, size in net.edges:
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
    """Change `taken` until the stage fits, as Piper does; False where nothing would do."""
    excess = sum(row[at] for row, at in zip(needs, taken, strict=True)) - memory_bytes
    if excess <= 0:
        return True
    if sum(map(min, needs)) > memory_bytes:
        return False
    savings = [row[at] - row[-1 - at] for row, at in zip(needs, taken, strict=True)]
    worth = [
        (abs(extra[v]) / saving, v) for v, saving in enumerate(savings) if saving > SMALLEST_SAVING
    ]
    for _, v in sorted(worth):
        taken[v] = 1 - taken[v]
        excess -= savings[v]
        if excess < SMALLEST_SAVING:
            break
    return True
