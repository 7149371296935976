"""Piper's input files (github.com/msr-fiddle/piper): JSON, one instance each.

    {"maxMemoryPerDevice": bytes, "maxDevices": count, "bandwidth": bytes per second,
     "mbsInBatch": count ("maxBatchSize" in their README),
     "nodes": [{"id": int, "name": text, "TMPCs": {degree: [choice, ...]}}, ...],
     "edges": [{"sourceId": id, "destId": id, "communicationCost": bytes}, ...]}

A choice has an `id`, `timePerSample` (forward and backward per microbatch) and `parameterSize`.
`memoryUsageA` and `memoryUsageB` are bytes: A for each microbatch in flight, B beside them.
`syncTimeFw` {source of an incoming edge: bytes} and `syncTimeBw` {target of an outgoing edge:
bytes} are bytes in spite of their names. Other fields are for information.

`read` keeps all fields, for Piper's own objective. `load` keeps the fields that autopart's profile
has: degree 1, without recomputation, and the changes that recomputation makes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import networkx as nx

from autopart.errors import FileError
from autopart.peers.piper.charges import (
    PiperChoice,
    PiperEdge,
    PiperLimits,
    PiperNet,
    PiperNode,
    topological_order,
)
from autopart.records.files import content_hash, decode_json, read_content
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, Value
from autopart.records.profile import Device, Profile, Source
from autopart.units import LARGEST, MOST_AMOUNT

Amount = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
Positive = Annotated[float, msgspec.Meta(ge=1 / MOST_AMOUNT, le=MOST_AMOUNT)]
Name = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]

MOST_CHOICES = 2
"""Choices per node and degree; Piper's rule for choosing knows no more."""

FORWARD_SHARE = 1 / 3
"""Forward's share of a node's time, where the file gives no cost for a second forward."""

FLOAT32_BYTES = 4


class PiperInstance(NamedTuple):
    """A file's model, and its limits unless told otherwise."""

    net: PiperNet
    limits: PiperLimits


class _NetChoice(msgspec.Struct, rename="camel"):
    id: str
    time_per_sample: Amount
    parameter_size: Amount
    memory_usage_a: Amount = msgspec.field(name="memoryUsageA")
    memory_usage_b: Amount = msgspec.field(name="memoryUsageB")
    sync_time_fw: dict[int, Amount]
    sync_time_bw: dict[int, Amount]


class _NetNode(msgspec.Struct):
    id: Name
    choices: dict[AtLeastOne, list[_NetChoice]] = msgspec.field(name="TMPCs")
    name: str = ""


class _NetEdge(msgspec.Struct, rename="camel"):
    source_id: Name
    dest_id: Name
    communication_cost: Amount


class _NetFile(msgspec.Struct, rename="camel"):
    max_memory_per_device: Positive
    max_devices: AtLeastOne
    bandwidth: Positive
    nodes: list[_NetNode]
    edges: list[_NetEdge]
    mbs_in_batch: AtLeastOne | None = None
    max_batch_size: AtLeastOne | None = None


def read(path: Path | str) -> PiperInstance:
    """The model and the limits in a file, as Piper's charges need them (charges.py).

    Raises FileError, naming the place in the file.
    """
    where = str(path)
    file = _decode(Path(path))
    ids = {node.id: place for place, node in enumerate(file.nodes)}
    microbatches = file.mbs_in_batch or file.max_batch_size
    if microbatches is None:
        raise FileError(f"{where}: $: neither `mbsInBatch` nor `maxBatchSize` is there")
    _check_edges(file, ids, where)
    sources: dict[int, set[int]] = {node.id: set() for node in file.nodes}
    targets: dict[int, set[int]] = {node.id: set() for node in file.nodes}
    for edge in file.edges:
        sources[edge.dest_id].add(edge.source_id)
        targets[edge.source_id].add(edge.dest_id)
    for place, node in enumerate(file.nodes):
        _check_choices(node, sources[node.id], targets[node.id], f"{where}: $.nodes[{place}]")
    nodes = tuple(_node(node, ids) for node in file.nodes)
    edges = tuple(
        PiperEdge(ids[e.source_id], ids[e.dest_id], e.communication_cost) for e in file.edges
    )
    limits = PiperLimits(
        devices=file.max_devices,
        memory_bytes=file.max_memory_per_device,
        bandwidth=file.bandwidth,
        microbatches=microbatches,
    )
    return PiperInstance(PiperNet(nodes, edges), limits)


def load(path: Path | str) -> Profile:
    """The file's model at tensor-parallel degree 1; raises FileError.

    Times count as seconds. A node's first choice is the layer. Its second one shows recomputation:
    the extra time is a forward. Without a second choice, a third of the node's time is its forward.
    I and W take half of the backward each.
    """
    net = read(path).net
    order = topological_order(net)
    names = {v: f"{net.nodes[v].name or 'node'}.{net.nodes[v].id}" for v in order}
    layers = tuple(_layer(net.nodes[v], names[v], str(path)) for v in order)
    graph = LayerGraph(layers=layers, values=_values(net, names, order))
    return Profile(
        method="imported",
        source=Source(
            model=str(path),
            graph_hash=content_hash(graph),
            num_params=sum(layer.num_trainable for layer in layers),
            software={},
        ),
        device=Device(kind="cuda", name="unknown (Piper's input)"),
        dtype="float32",
        microbatch_size=1,
        graph=graph,
        warnings=(
            "times are taken as seconds: in Piper's own gnmt.json and resnet.json they are "
            "milliseconds, so that transfers weigh too little there",
            "the file does not say how many samples a microbatch has, nor what its weights are: "
            "taken as 1 sample and float32",
        ),
    )


def _decode(path: Path) -> _NetFile:
    """The file's content, decoded strictly."""
    return decode_json(read_content(path), _NetFile, f"{path}: not an input of Piper")


def _check_edges(file: _NetFile, ids: Mapping[int, int], where: str) -> None:
    """Raise FileError on an id or edge that is missing or stands twice, or on a circle."""
    if not file.nodes:
        raise FileError(f"{where}: $.nodes: it is empty; at least one node is needed")
    for place, node in enumerate(file.nodes):
        if ids[node.id] != place:
            raise FileError(f"{where}: $.nodes[{place}].id: another node has the id {node.id} too")
    seen: set[tuple[int, int]] = set()
    for place, edge in enumerate(file.edges):
        at = f"{where}: $.edges[{place}]"
        for field, end in (("sourceId", edge.source_id), ("destId", edge.dest_id)):
            if end not in ids:
                raise FileError(f"{at}.{field}: no node has the id {end}")
        if (edge.source_id, edge.dest_id) in seen:
            raise FileError(f"{at}: a second edge from {edge.source_id} to {edge.dest_id}")
        seen.add((edge.source_id, edge.dest_id))
    try:
        circle = nx.find_cycle(nx.DiGraph(list(seen)))
    except nx.NetworkXNoCycle:
        return
    path = " -> ".join(str(edge[0]) for edge in [*circle, circle[0]])
    raise FileError(f"{where}: $.edges: they go in a circle, {path}; none may")


def _check_choices(node: _NetNode, sources: set[int], targets: set[int], at: str) -> None:
    """Raise FileError on choices that Piper's rule does not know, or that miss an edge."""
    for degree, choices in node.choices.items():
        here = f"{at}.TMPCs.{degree}"
        if len(choices) > MOST_CHOICES:
            raise FileError(
                f"{here}: {len(choices)} choices; at most {MOST_CHOICES} are understood"
            )
        names = [choice.id for choice in choices]
        if len(set(names)) < len(names):
            raise FileError(f"{here}: two choices have the id '{names[0]}'")
        for place, choice in enumerate(choices):
            _same(choice.sync_time_fw, sources, f"{here}[{place}].syncTimeFw", "from")
            _same(choice.sync_time_bw, targets, f"{here}[{place}].syncTimeBw", "to")


def _same(found: Iterable[int], expected: set[int], at: str, side: str) -> None:
    """Raise FileError unless exactly the expected edges stand in a choice."""
    odd = expected.symmetric_difference(found)
    if odd:
        one = min(odd)
        what = (
            f"the edge {side} node {one} is missing" if one in expected else f"no edge {side} {one}"
        )
        raise FileError(f"{at}: {what}; exactly the node's edges must stand here")


def _node(node: _NetNode, ids: Mapping[int, int]) -> PiperNode:
    choices = {
        degree: tuple(_choice(choice, ids) for choice in row)
        for degree, row in sorted(node.choices.items())
        if row
    }
    return PiperNode(id=node.id, name=node.name, choices=choices)


def _choice(choice: _NetChoice, ids: Mapping[int, int]) -> PiperChoice:
    return PiperChoice(
        name=choice.id,
        time=choice.time_per_sample,
        weight_bytes=choice.parameter_size,
        stash_bytes=choice.memory_usage_a,
        state_bytes=choice.memory_usage_b,
        receive_bytes={ids[u]: size for u, size in choice.sync_time_fw.items()},
        send_bytes={ids[x]: size for x, size in choice.sync_time_bw.items()},
    )


def _layer(node: PiperNode, name: str, where: str) -> Layer:
    """The layer for one node: its first choice, with the second one as recomputation."""
    if 1 not in node.choices:
        raise FileError(
            f"{where}: node {node.id} has no choice for one device; a profile needs one"
        )
    plain, *others = node.choices[1]
    recompute = None
    forward = plain.time * FORWARD_SHARE
    if others and others[0].stash_bytes < plain.stash_bytes and others[0].time >= plain.time:
        extra = others[0].time - plain.time
        recompute = Recompute(extra_time=extra, stash_bytes=round(others[0].stash_bytes))
        forward = min(extra, plain.time) or forward
    weights = round(plain.weight_bytes)
    return Layer(
        name=name,
        kind=node.name or "node",
        forward_time=forward,
        input_grad_time=(plain.time - forward) / 2,
        weight_grad_time=(plain.time - forward) / 2,
        param_bytes=weights,
        grad_bytes=weights,
        num_trainable=weights // FLOAT32_BYTES,
        stash_bytes=round(plain.stash_bytes),
        recompute=recompute,
    )


def _values(net: PiperNet, names: Mapping[int, str], order: tuple[int, ...]) -> tuple[Value, ...]:
    """One value per producer and size.

    Piper's edges may differ in size. A tensor that several nodes read is one value.
    """
    readers: dict[tuple[int, int], list[int]] = {}
    for source, target, size in net.edges:
        readers.setdefault((source, round(size)), []).append(target)
    place = {v: at for at, v in enumerate(order)}
    return tuple(
        Value(
            name=f"{names[source]}.out.{size}",
            producer=names[source],
            consumers=tuple(names[t] for t in sorted(targets, key=place.__getitem__)),
            bytes=size,
            has_gradient=True,
        )
        for (source, size), targets in sorted(
            readers.items(), key=lambda it: (place[it[0][0]], it[0])
        )
    )
