"""dnn-partitioning's input files (github.com/msr-fiddle/dnn-partitioning): JSON, one instance each.

    {"maxSizePerFPGA": bytes per accelerator, "maxFPGAs": count, "maxCPUs": count,
     "nodes": [{"id": int, "fpgaLatency": ms, "cpuLatency": ms, "supportedOnFpga": bool or 0/1,
                "isBackwardNode": bool or 0/1, "colorClass": int (optional), "size": bytes (optional)}],
     "edges": [{"sourceId": id, "destId": id, "cost": ms to move the source's output}]}

All edges out of a node carry the same cost. A node's `name` and an edge's `size` (tensor bytes) are
used where they stand. Other fields are for information.

`read` keeps everything that the planner's own objective needs (charges.py). `load` keeps the fields
that autopart's profile has: a layer for each colour, with forward nodes and their backward nodes.
It drops CPU latencies.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import networkx as nx

from autopart.errors import FileError
from autopart.peers.dnn_partitioning.charges import (
    DnnEdge,
    DnnInstance,
    DnnNode,
    Group,
    group_edges,
    group_of,
)
from autopart.records.files import content_hash, decode_json, read_content
from autopart.records.layer_graph import Layer, LayerGraph, Value
from autopart.records.profile import Device, Profile, Source
from autopart.text import counted
from autopart.units import LARGEST, MOST_AMOUNT

Amount = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
"""A number that is not negative."""
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Name = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
"""A number that names a node or a colour."""
Flag = bool | Literal[0, 1]

SAME_COST = 1e-6
"""Most by which costs on edges out of one node may differ, as in the published program."""

MILLISECOND = 1e-3
ASSUMED_BANDWIDTH = 16e9
"""Bytes per second that turn a cost into bytes where the file has none: PCIe 3 with 16 lanes."""


class _InputNode(msgspec.Struct):
    id: Name
    fpga_latency: Amount = msgspec.field(name="fpgaLatency")
    cpu_latency: Amount = msgspec.field(name="cpuLatency")
    supported_on_fpga: Flag = msgspec.field(name="supportedOnFpga")
    is_backward_node: Flag = msgspec.field(name="isBackwardNode")
    color_class: Name | None = msgspec.field(name="colorClass", default=None)
    size: Amount = 0.0
    name: str = ""


class _InputEdge(msgspec.Struct, rename="camel"):
    source_id: Name
    dest_id: Name
    cost: Amount
    size: Amount | None = None


class _InputFile(msgspec.Struct):
    size_limit: Amount = msgspec.field(name="maxSizePerFPGA")
    num_accelerators: NotNegative = msgspec.field(name="maxFPGAs")
    num_cpus: NotNegative = msgspec.field(name="maxCPUs")
    nodes: list[_InputNode]
    edges: list[_InputEdge]


def read(path: Path | str) -> DnnInstance:
    """The instance in a file; raises FileError, naming the place in the file."""
    file = _decode(Path(path))
    _check_ids(file, str(path))
    _check_edges(file, str(path))
    nodes = tuple(
        DnnNode(
            id=node.id,
            name=node.name,
            accelerator_latency=node.fpga_latency,
            cpu_latency=node.cpu_latency,
            size=node.size,
            color=node.color_class,
            on_accelerator=bool(node.supported_on_fpga),
            backward=bool(node.is_backward_node),
        )
        for node in file.nodes
    )
    costs: dict[int, float] = {}
    for edge in file.edges:
        costs.setdefault(edge.source_id, edge.cost)
    pairs = dict.fromkeys(DnnEdge(edge.source_id, edge.dest_id) for edge in file.edges)
    return DnnInstance(
        nodes=nodes,
        edges=tuple(pairs),
        costs=costs,
        num_accelerators=file.num_accelerators,
        num_cpus=file.num_cpus,
        size_limit=file.size_limit,
    )


def _decode(path: Path) -> _InputFile:
    """The file's content, decoded strictly."""
    return decode_json(read_content(path), _InputFile, f"{path}: not an input of dnn-partitioning")


def _check_ids(file: _InputFile, where: str) -> None:
    """Raise FileError on an id that is missing, or stands twice."""
    if not file.nodes:
        raise FileError(f"{where}: $.nodes: it is empty; at least one node is needed")
    seen: set[int] = set()
    for place, node in enumerate(file.nodes):
        if node.id in seen:
            raise FileError(f"{where}: $.nodes[{place}].id: another node has the id {node.id} too")
        seen.add(node.id)
    for place, edge in enumerate(file.edges):
        for field, end in (("sourceId", edge.source_id), ("destId", edge.dest_id)):
            if end not in seen:
                raise FileError(f"{where}: $.edges[{place}].{field}: no node has the id {end}")


def _check_edges(file: _InputFile, where: str) -> None:
    """Raise FileError on edges with unequal costs, from backward to forward, or in a circle."""
    backward = {node.id for node in file.nodes if node.is_backward_node}
    first: dict[int, float] = {}
    for place, edge in enumerate(file.edges):
        at = f"{where}: $.edges[{place}]"
        expected = first.setdefault(edge.source_id, edge.cost)
        if abs(edge.cost - expected) > SAME_COST:
            raise FileError(
                f"{at}.cost: {edge.cost}, but an earlier edge out of node {edge.source_id} costs "
                f"{expected}; all edges out of a node cost the same"
            )
        if edge.source_id in backward and edge.dest_id not in backward:
            raise FileError(
                f"{at}: it goes from backward node {edge.source_id} to forward node {edge.dest_id}; "
                "no edge may"
            )
    graph: nx.DiGraph[int] = nx.DiGraph([(e.source_id, e.dest_id) for e in file.edges])
    if not nx.is_directed_acyclic_graph(graph):
        circle = nx.find_cycle(graph)
        path = " -> ".join(str(edge[0]) for edge in [*circle, circle[0]])
        raise FileError(f"{where}: $.edges: they go in a circle, {path}; none may")


def load(path: Path | str) -> Profile:
    """The file's graph as a profile; raises FileError.

    Latencies count as milliseconds. Where a file has backward nodes, I and W take half of a layer's
    backward each. A layer's bytes stand in `buffer_bytes`: the file does not split weights from
    activations, and does not count microbatches in flight.
    """
    instance = read(path)
    sizes = _tensor_bytes(_decode(Path(path)))
    home, order = _layers_of(instance)
    names = _names(order)
    layers = tuple(_layer(nodes, name) for name, nodes in names)
    values, dropped = _values(instance, home, [name for name, _ in names], sizes)
    graph = LayerGraph(layers=layers, values=values)
    return Profile(
        method="imported",
        source=Source(model=str(path), graph_hash=content_hash(graph), num_params=0, software={}),
        device=Device(kind="cuda", name="unknown (dnn-partitioning's input)"),
        dtype="float32",
        microbatch_size=1,
        graph=graph,
        warnings=_warnings(instance, dropped),
    )


def _warnings(instance: DnnInstance, dropped: int) -> tuple[str, ...]:
    """The assumptions behind a profile from this file."""
    found = [
        "latencies are taken as milliseconds, a sample as a microbatch",
        "the file's bytes, weights and activations together, are taken as state of the layer, "
        "whatever is in flight; it knows neither gradients nor optimizer",
        f"what the layers take on a CPU ({instance.num_cpus} are allowed there) is left out",
    ]
    if any(node.backward for node in instance.nodes):
        found.append("the file does not split a backward: I and W take half of it each")
    if dropped:
        found.append(
            f"{dropped} tensors that only a backward of an earlier layer reads are left out"
        )
    return tuple(found)


def _tensor_bytes(file: _InputFile) -> dict[int, int]:
    """Output bytes for each node: the file's own, else the bytes that the cost would move over
    PCIe."""
    sizes: dict[int, int] = {}
    for edge in file.edges:
        moved = edge.cost * MILLISECOND * ASSUMED_BANDWIDTH if edge.size is None else edge.size
        sizes[edge.source_id] = max(sizes.get(edge.source_id, 0), round(moved))
    return sizes


def _layers_of(instance: DnnInstance) -> tuple[dict[int, int], list[list[DnnNode]]]:
    """The layer for each node, and each layer's nodes, in a topological order.

    Colours that lie in a circle under `group_edges` can only stand on one device: they are one
    layer.
    """
    graph: nx.DiGraph[Group] = nx.DiGraph()
    graph.add_nodes_from(dict.fromkeys(group_of(node) for node in instance.nodes))
    graph.add_edges_from(group_edges(instance))
    joined: nx.DiGraph[int] = nx.condensation(graph)
    first: dict[int, int] = {}
    for place, node in enumerate(instance.nodes):
        first.setdefault(joined.graph["mapping"][group_of(node)], place)
    order = list(nx.lexicographical_topological_sort(joined, key=first.__getitem__))
    position = {component: index for index, component in enumerate(order)}
    home = {n.id: position[joined.graph["mapping"][group_of(n)]] for n in instance.nodes}
    layers: list[list[DnnNode]] = [[] for _ in order]
    for node in instance.nodes:
        layers[home[node.id]].append(node)
    return home, layers


def _names(layers: Iterable[list[DnnNode]]) -> list[tuple[str, list[DnnNode]]]:
    """Each layer by its first forward node: by name, and by id too where names are not unique."""
    chiefs = [
        (next((node for node in nodes if not node.backward), nodes[0]), nodes) for nodes in layers
    ]
    plain = {chief.name for chief, _ in chiefs} - {""}
    if len(plain) == len(chiefs):
        return [(chief.name, nodes) for chief, nodes in chiefs]
    return [(f"{chief.name or 'node'}.{chief.id}", nodes) for chief, nodes in chiefs]


def _layer(nodes: Iterable[DnnNode], name: str) -> Layer:
    """The layer for one group; `nodes` are its members."""
    members = list(nodes)
    forward = math.fsum(n.accelerator_latency for n in members if not n.backward) * MILLISECOND
    backward = math.fsum(n.accelerator_latency for n in members if n.backward) * MILLISECOND
    return Layer(
        name=name,
        kind=f"{counted(len(members), 'node')}" if len(members) > 1 else members[0].name or "node",
        forward_time=forward,
        input_grad_time=backward / 2,
        weight_grad_time=backward / 2,
        buffer_bytes=math.ceil(math.fsum(node.size for node in members)),
    )


def _values(
    instance: DnnInstance, home: Mapping[int, int], names: list[str], sizes: Mapping[int, int]
) -> tuple[tuple[Value, ...], int]:
    """The tensors between layers, and the number that only an earlier layer's backward reads."""
    node_of = {node.id: node for node in instance.nodes}
    readers: dict[int, set[int]] = {}
    keepers: dict[int, set[int]] = {}
    returned: set[frozenset[int]] = (
        set()
    )  # the published layer graphs draw them in either direction
    behind: set[int] = set()
    for u, v in instance.edges:
        # Edges out of a backward node return a gradient; edges out of a forward node are read,
        # kept, or both.
        source, target = home[u], home[v]
        if node_of[u].backward:
            returned.add(frozenset((source, target)))
            continue
        if target > source:
            readers.setdefault(u, set()).add(target)
        elif target < source:
            behind.add(u)
        if node_of[v].backward and target >= source:
            keepers.setdefault(u, set()).add(target)
    values = tuple(
        Value(
            name=f"{names[home[u]]}.out.{u}",
            producer=names[home[u]],
            consumers=tuple(names[t] for t in sorted(targets)),
            bytes=sizes[u],
            has_gradient=any(frozenset((home[u], t)) in returned for t in targets),
            kept_by=tuple(names[t] for t in sorted(keepers.get(u, ()))),
        )
        for u, targets in sorted(readers.items(), key=lambda item: (home[item[0]], item[0]))
    )
    return values, len(behind - readers.keys())
