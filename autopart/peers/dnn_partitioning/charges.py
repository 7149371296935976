"""dnn-partitioning's charges for a device (Tarnawski et al., NeurIPS 2020), and the rules for a
split.

Symbols   S        the nodes on a device;  V  all nodes
          p, q     a node's latency on an accelerator, and on a CPU
          c(u)     cost to move node u's output between an accelerator and the CPUs' memory
          R(u)     node u and every node that reads its output

    accelerator(S) = sum of p over S + sum of c(u) over the u for which S holds some, not all of R(u)  (1)
    cpu(S)         = sum of q over S                                                              (2)
    objective      = the largest charge on a device                                               (3)

The authors call (3) the max-load. (1) charges both ends of a transfer: once for each u and device,
however many edges lead there. The other end may be an accelerator or a CPU, at the same cost. A CPU
pays for no transfer. Nothing overlaps.

A split gives each node one device, and keeps to the number of devices per kind. Nodes with one
colour share a device; a node without a colour is free. Accelerators limit the sum of node sizes,
and take only nodes that can run there. A split is contiguous where its devices stand in an order in
which no edge between forward nodes goes back. A colour without a forward node has no such edge. An
edge between backward nodes with such a colour at one end counts in reverse, from colour to colour.

Latencies and costs are in the file's unit, as a rule milliseconds; sizes are bytes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from autopart.errors import PlanError
from autopart.text import counted

Kind = Literal["accelerator", "cpu"]
"""The kinds of device."""


class DnnNode(NamedTuple):
    """A layer or an operator, forward or backward."""

    id: int
    name: str
    accelerator_latency: float
    cpu_latency: float
    size: float
    """Bytes on an accelerator, weights and activations."""
    color: int | None
    """Nodes with one colour share a device; None shares with nobody."""
    on_accelerator: bool
    """Whether the node can run on an accelerator."""
    backward: bool


class DnnEdge(NamedTuple):
    """A tensor from the node that makes it to a node that reads it, by their ids."""

    source: int
    target: int


class DnnInstance(NamedTuple):
    """A graph and its devices."""

    nodes: tuple[DnnNode, ...]
    edges: tuple[DnnEdge, ...]
    costs: dict[int, float]
    """c(u), by the id for each node that has a reader."""
    num_accelerators: int
    num_cpus: int
    size_limit: float
    """Bytes on one accelerator."""


class DeviceStage(NamedTuple):
    """The nodes on one device."""

    kind: Kind
    nodes: tuple[int, ...]
    """Ids, in ascending order."""


def charge(instance: DnnInstance, stage: DeviceStage) -> float:
    """Formula (1) or (2); the sum is rounded once, so that the order of nodes does not matter."""
    ids = set(stage.nodes)
    mine = [node for node in instance.nodes if node.id in ids]
    if stage.kind == "cpu":
        return math.fsum(node.cpu_latency for node in mine)
    # For each producer: whether its node and its readers are on this device, on others, or on both.
    ends: dict[int, set[bool]] = {}
    for source, target in instance.edges:
        ends.setdefault(source, {source in ids}).add(target in ids)
    moved = [instance.costs[u] for u, sides in ends.items() if len(sides) == 2]
    return math.fsum([*(node.accelerator_latency for node in mine), *moved])


def objective(instance: DnnInstance, stages: Sequence[DeviceStage]) -> float:
    """Formula (3)."""
    return max((charge(instance, stage) for stage in stages), default=0.0)


def size_of(instance: DnnInstance, stage: DeviceStage) -> float:
    """Bytes that a stage's nodes take."""
    ids = set(stage.nodes)
    return math.fsum(node.size for node in instance.nodes if node.id in ids)


def group_of(node: DnnNode) -> tuple[str, int]:
    """The name for the nodes that share a device with `node`: its colour, or the node alone."""
    return ("node", node.id) if node.color is None else ("color", node.color)


Group = tuple[str, int]
"""The name for nodes that share a device."""


def group_edges(instance: DnnInstance) -> Iterator[tuple[Group, Group]]:
    """Pairs of groups (a, b), a != b: a contiguous split has a on no later device than b."""
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


def check_split(instance: DnnInstance, stages: Sequence[DeviceStage], *, contiguous: bool) -> float:
    """The objective for a split in pipeline order; raises PlanError at the first broken rule."""
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


def _homes(instance: DnnInstance, stages: Sequence[DeviceStage]) -> dict[int, int]:
    """The stage that each node is on; raises PlanError unless each node is on one."""
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


def _check_counts(instance: DnnInstance, stages: Sequence[DeviceStage]) -> None:
    """Raise PlanError where a kind has more stages than devices."""
    limits = {"accelerator": instance.num_accelerators, "cpu": instance.num_cpus}
    for kind, limit in limits.items():
        used = sum(stage.kind == kind for stage in stages)
        if used > limit:
            raise PlanError(f"{counted(used, 'stage')} of kind {kind}, there are {limit}")


def _check_accelerator(instance: DnnInstance, index: int, stage: DeviceStage) -> None:
    """Raise PlanError where a node cannot run on the accelerator, or its nodes do not fit."""
    ids = set(stage.nodes)
    for node in instance.nodes:
        if node.id in ids and not node.on_accelerator:
            raise PlanError(f"node {node.id} cannot run on an accelerator, but is on stage {index}")
    size = size_of(instance, stage)
    if size > instance.size_limit:
        raise PlanError(f"stage {index} holds {size:.0f} bytes of {instance.size_limit:.0f}")
