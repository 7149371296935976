"""What dnn-partitioning charges a device (Tarnawski et al., NeurIPS 2020), and what a split must obey.

Symbols   S        the nodes of a device;  V  all nodes
          p, q     a node's latency on an accelerator, and on a CPU
          c(u)     the cost of moving the output of node u between an accelerator and the CPUs' memory
          R(u)     node u and every node that reads its output

    accelerator(S) = sum of p over S + sum of c(u) over the u for which S holds some, not all of R(u)  (1)
    cpu(S)         = sum of q over S                                                              (2)
    objective      = the largest load of a device                                                 (3)

(1) charges both ends of a transfer, once for each u and device however many edges lead there, and the
same whether the other end is an accelerator or a CPU; a CPU pays for no transfer, nothing overlaps.

A split gives each node one device, at most so many of each kind. Nodes of one colour share a device;
a node without a colour is free. The sizes on an accelerator add up to at most its limit, and each
of its nodes runs on accelerators. A split is contiguous where its devices stand in an order in which
no edge between forward nodes goes back. A colour without a forward node has no such edge; where it is
an end of an edge between backward nodes, that edge counts the other way round, from colour to colour.

Latencies and costs are in the unit of the file, as a rule milliseconds; sizes are bytes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from autopart.errors import PlanError

Kind = Literal["accelerator", "cpu"]


class Node(NamedTuple):
    """A layer or an operator, forward or backward."""

    id: int
    name: str
    accelerator_latency: float
    cpu_latency: float
    size: float
    """Bytes on an accelerator, weights and activations."""
    color: int | None
    on_accelerator: bool
    """Whether it can run on an accelerator."""
    backward: bool


class Edge(NamedTuple):
    """A tensor's way from the node that makes it to one that reads it, by their ids."""

    source: int
    target: int


class Instance(NamedTuple):
    """A graph and the devices for it."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    costs: dict[int, float]
    """c(u), by the id of a node that some other node reads."""
    num_accelerators: int
    num_cpus: int
    size_limit: float
    """Bytes that an accelerator holds."""


class Stage(NamedTuple):
    """The nodes that one device holds."""

    kind: Kind
    nodes: tuple[int, ...]
    """Ids, in ascending order."""


def load(instance: Instance, stage: Stage) -> float:
    """(1) or (2); the sum is rounded once, so that the order of nodes does not matter."""
    held = set(stage.nodes)
    mine = [node for node in instance.nodes if node.id in held]
    if stage.kind == "cpu":
        return math.fsum(node.cpu_latency for node in mine)
    ends: dict[int, set[bool]] = {}
    for source, target in instance.edges:
        ends.setdefault(source, {source in held}).add(target in held)
    moved = [instance.costs[u] for u, sides in ends.items() if len(sides) == 2]
    return math.fsum([*(node.accelerator_latency for node in mine), *moved])


def objective(instance: Instance, stages: Sequence[Stage]) -> float:
    """(3)."""
    return max((load(instance, stage) for stage in stages), default=0.0)


def size_of(instance: Instance, stage: Stage) -> float:
    """Bytes of the nodes of a stage."""
    held = set(stage.nodes)
    return math.fsum(node.size for node in instance.nodes if node.id in held)


def group_of(node: Node) -> tuple[str, int]:
    """The name of the nodes that must share a device with `node`: its colour's, or its own."""
    return ("node", node.id) if node.color is None else ("color", node.color)


Group = tuple[str, int]


def group_edges(instance: Instance) -> Iterator[tuple[Group, Group]]:
    """Every (a, b), a != b, such that a contiguous split has a on no later device than b."""
    node_of = {node.id: node for node in instance.nodes}
    with_forward = {group_of(node) for node in instance.nodes if not node.backward}
    for u, v in instance.edges:
        a, b = group_of(node_of[u]), group_of(node_of[v])
        if a == b:
            continue
        if not node_of[u].backward and not node_of[v].backward:
            yield a, b
        elif node_of[u].backward and node_of[v].backward and not {a, b} <= with_forward:
            yield b, a


def check_split(instance: Instance, stages: Sequence[Stage], *, contiguous: bool) -> float:
    """The objective of a split, given in pipeline order; PlanError says what it breaks."""
    home = _homes(instance, stages)
    _check_counts(instance, stages)
    color_home: dict[Group, int] = {}
    for node in instance.nodes:
        other = color_home.setdefault(group_of(node), home[node.id])
        if other != home[node.id]:
            raise PlanError(
                f"nodes of color {node.color} are on stages {other} and {home[node.id]}; "
                "they must share a device"
            )
    for index, stage in enumerate(stages):
        if stage.kind == "accelerator":
            _check_accelerator(instance, index, stage)
    if contiguous:
        for a, b in group_edges(instance):
            if color_home[a] > color_home[b]:
                raise PlanError(
                    f"{a[0]} {a[1]} on stage {color_home[a]} comes before {b[0]} {b[1]} on the "
                    f"earlier stage {color_home[b]}: the split is not contiguous in this order"
                )
    return objective(instance, stages)


def _homes(instance: Instance, stages: Sequence[Stage]) -> dict[int, int]:
    known = {node.id for node in instance.nodes}
    home: dict[int, int] = {}
    for index, stage in enumerate(stages):
        for node in stage.nodes:
            if node not in known:
                raise PlanError(f"stage {index} holds node {node}, which the file does not know")
            if node in home:
                raise PlanError(f"node {node} is on stage {home[node]} and on stage {index}")
            home[node] = index
    missing = sorted(known - home.keys())
    if missing:
        raise PlanError(f"node {missing[0]} is on no stage ({len(missing)} are missing)")
    return home


def _check_counts(instance: Instance, stages: Sequence[Stage]) -> None:
    limits = {"accelerator": instance.num_accelerators, "cpu": instance.num_cpus}
    for kind, limit in limits.items():
        used = sum(stage.kind == kind for stage in stages)
        if used > limit:
            raise PlanError(f"{used} stages of kind {kind}, there are {limit}")


def _check_accelerator(instance: Instance, index: int, stage: Stage) -> None:
    held = set(stage.nodes)
    for node in instance.nodes:
        if node.id in held and not node.on_accelerator:
            raise PlanError(f"node {node.id} cannot run on an accelerator, but is on stage {index}")
    size = size_of(instance, stage)
    if size > instance.size_limit:
        raise PlanError(f"stage {index} holds {size:.0f} bytes of {instance.size_limit:.0f}")
