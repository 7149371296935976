"""The nodes of a traced graph, grouped into layers.

A node belongs to the module that computed it (``nn_module_stack``). The search starts at the root.
A module is *opened* if it is a list of layers or has one below it. Otherwise it is one layer. An
opened module's own nodes are its *glue* (residual sums, concatenations). Glue joins the layer of
its latest producer, or of its first consumer if it has no producer. Layers that cannot run apart
are merged, and a note gives the reason. Replicable nodes (masks, position ids) belong to no layer:
each stage computes its own.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import networkx as nx
import torch
from torch import fx, nn

from autopart.records.layer_graph import LOSS
from autopart.runtime.capture.call_outputs import OPAQUE_LAYER
from autopart.runtime.capture.dataflow import Dataflow, dependencies, read_storages
from autopart.runtime.capture.layer_discovery import Call, call_stack, opened_modules

Merged: TypeAlias = "nx.utils.UnionFind[str]"

ROOT = "model"
"""Name for the layer with the root module's own nodes, used where there is no other layer."""


@dataclass(frozen=True, slots=True)
class LayerNodes:
    """One layer: the nodes that only it computes, in graph order."""

    name: str
    kind: str
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Grouping:
    """All layers, in a topological order that keeps the model's own order."""

    groups: tuple[LayerNodes, ...]
    notes: tuple[str, ...]


def group_nodes(graph: fx.Graph, flow: Dataflow, model: nn.Module, granularity: str) -> Grouping:
    """Divide the graph's nodes into layers. `model` is the user's own module."""
    # Step 1: only nodes that do work and cannot be replicated belong to layers.
    bound = [n for n in graph.nodes if _is_work(n) and n not in flow.replicable]
    index = {node: place for place, node in enumerate(graph.nodes)}
    draft = _Draft(flow, index, frozenset(bound))
    # Step 2: nodes of closed modules form layers, and glue joins its latest producer.
    opened = opened_modules(bound, index, flow, model, granularity)
    for node in bound:
        draft.place(node, _closed_call(node, opened, model))
    # Step 3: glue without producers joins its first consumer.
    draft.place_sources(reversed(bound), type(model).__name__)
    # Step 4: layers that cannot run apart become one.
    notes = _merge(draft, graph)
    return Grouping(groups=_ordered(draft), notes=tuple(notes))


def _is_work(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_module")


def _closed_call(node: fx.Node, opened: frozenset[str], model: nn.Module) -> tuple[str, str] | None:
    """Return the layer's name and kind from the node's module stack, or None for glue."""
    stack = call_stack(node)
    if stack is None:
        return LOSS, LOSS
    closed = next((call for call in stack if call.path not in opened), None)
    if closed is None and OPAQUE_LAYER in node.meta:
        name = str(node.meta[OPAQUE_LAYER])  # statements in an opened module's own code
        return name, type(model.get_submodule(name.partition("@")[0])).__name__
    return None if closed is None else (closed.name, _kind(closed, model))


def _kind(call: Call, model: nn.Module) -> str:
    return type(model.get_submodule(call.path)).__name__


@dataclass(slots=True)
class _Layer:
    kind: str
    nodes: list[fx.Node] = field(default_factory=list)
    above: set[str] = field(default_factory=set)
    """Layers that this layer needs, directly or not, among the nodes placed so far."""
    start: int | None = None
    """Index of the layer's first node that is not glue."""


class _Draft:
    """Layers to which nodes are still being added."""

    def __init__(
        self, flow: Dataflow, index: Mapping[fx.Node, int], bound: frozenset[fx.Node]
    ) -> None:
        self.flow = flow
        self.index = index
        self.bound = bound
        self.layers: dict[str, _Layer] = {}
        self.layer_of: dict[fx.Node, str] = {}

    def place(self, node: fx.Node, closed: tuple[str, str] | None) -> None:
        """Add `node` to its module's layer or, as glue, to its latest producer's layer."""
        producer = node.args[0] if node.args else None
        if _takes_part(node) and isinstance(producer, fx.Node) and producer in self.layer_of:
            self._add(node, self.layer_of[producer])
        elif closed is not None:
            name, kind = closed
            layer = self.layers.setdefault(name, _Layer(kind))
            if layer.start is None:
                layer.start = self.index[node]
            self._add(node, name)
        elif (latest := self._latest_producer(node)) is not None:
            self._add(node, latest)

    def place_sources(self, backwards: Iterable[fx.Node], root_kind: str) -> None:
        """Add glue without producers (it needs parameters only) to its first consumer's layer.

        If only the loss consumes it, or nothing, it joins the layer before it.
        """
        for node in backwards:
            if node in self.layer_of:
                continue
            users = sorted(
                (u for u in node.users if u in self.layer_of), key=self.index.__getitem__
            )
            names = [self.layer_of[user] for user in users if self.layer_of[user] != LOSS]
            self._add(node, names[0] if names else self._layer_before(node, root_kind))

    def _layer_before(self, node: fx.Node, root_kind: str) -> str:
        started = [name for name, layer in self.layers.items() if name != LOSS and layer.start]
        earlier = [n for n in started if (self.layers[n].start or 0) < self.index[node]]
        if started:
            return earlier[-1] if earlier else started[0]
        self.layers.setdefault(ROOT, _Layer(root_kind, start=self.index[node]))
        return ROOT

    def _add(self, node: fx.Node, name: str) -> None:
        layer = self.layers[name]
        layer.nodes.append(node)
        self.layer_of[node] = name
        for before in dependencies(node, self.flow):
            other = self.layer_of.get(before, name)
            if other != name:
                layer.above |= {other} | self.layers[other].above

    def _latest_producer(self, node: fx.Node) -> str | None:
        """Return the producers' layer that none of the other producers' layers precede."""
        made: dict[str, int] = {}
        for before in dependencies(node, self.flow):
            if before in self.layer_of:
                name = self.layer_of[before]
                made[name] = max(made.get(name, -1), self.index[before])
        last = [
            name
            for name in made
            if not any(name in self.layers[o].above for o in made if o != name)
        ]
        return max(last or made, key=made.__getitem__, default=None)


def _takes_part(node: fx.Node) -> bool:
    """Tell whether the node is one part of a structured output. It stays with its producer."""
    return node.target in (operator.getitem, getattr)


def _merge(draft: _Draft, graph: fx.Graph) -> list[str]:
    notes: list[str] = []
    merged: Merged = nx.utils.UnionFind(draft.layers)
    in_place: list[tuple[str, ...]] = []
    for members, reason in _inseparable(draft, graph):
        # Step 1: merge layers whose nodes must run on one stage.
        names = _in_order(draft, {draft.layer_of[n] for n in members})
        if len({merged[name] for name in names}) > 1:
            if reason:
                notes.append(f"layers {_listed(names)} are one layer: {reason}")
            else:
                in_place.append(names)
        merged.union(*names)
    _rename(draft, merged)
    if in_place:
        told = "; ".join(f"{_listed(names[1:])} into {names[0]}" for names in in_place[:4])
        more = f" and {len(in_place) - 4} more" if len(in_place) > 4 else ""
        notes.append(
            f"layers that write in place into a value of an earlier layer join that layer: "
            f"{told}{more}"
        )
    # Step 2: merge layers that now need each other.
    circles: Merged = nx.utils.UnionFind(draft.layers)
    for circle in nx.strongly_connected_components(_quotient(draft)):
        if len(circle) > 1:
            names = _in_order(draft, circle)
            circles.union(*names)
            notes.append(f"layers {_listed(names)} are one layer: each needs a value of another")
    _rename(draft, circles)
    return notes


def _inseparable(draft: _Draft, graph: fx.Graph) -> Iterable[tuple[set[fx.Node], str]]:
    """Yield sets of nodes that must run on one stage, each with the reason.

    The reason is empty where one node writes in place into another one's result.
    """
    yield from _sharing_a_storage(draft)
    for node in graph.nodes:
        if node in draft.bound and not _can_be_sent(draft.flow.facts[node].value):
            users = {user for user in node.users if user in draft.bound}
            if all(map(_takes_part, users)):
                continue  # structured outputs stay in their own layer
            why = (
                f"'{node.name}' is a number or has a shape that depends on the data, and only "
                "tensors with fixed shapes can be sent"
            )
            yield {node, *users}, why


def _can_be_sent(value: object) -> bool:
    """Tell whether the value is a tensor with a shape that does not depend on the data."""
    if not isinstance(value, torch.Tensor):
        return False
    return not any(isinstance(size, torch.SymInt) for size in value.shape)


def _sharing_a_storage(draft: _Draft) -> Iterable[tuple[set[fx.Node], str]]:
    flow, index = draft.flow, draft.index
    # Step 1: find the nodes that write into each storage.
    writers: dict[int, list[fx.Node]] = {}
    for node, written in flow.writes.items():
        if node in draft.bound:
            for storage in written:
                writers.setdefault(storage, []).append(node)
    # Step 2: add the nodes that read or return such a storage.
    touching: dict[int, set[fx.Node]] = {storage: set(ns) for storage, ns in writers.items()}
    for node in draft.bound:
        for storage in read_storages(node, flow) | flow.facts[node].storages:
            if storage in touching:
                touching[storage].add(node)
    # Step 3: these nodes stay together. For a storage that is no state, reads after the last write
    # are free.
    for storage, nodes in touching.items():
        if storage in flow.state:
            name = flow.state[storage]
            yield nodes, f"they share '{name}', which changes with every microbatch"
        else:
            last = max(index[node] for node in writers[storage])
            yield {node for node in nodes if index[node] <= last}, ""


def _quotient(draft: _Draft) -> "nx.DiGraph[str]":
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(draft.layers)
    for node, name in draft.layer_of.items():
        for before in dependencies(node, draft.flow):
            other = draft.layer_of.get(before, name)
            if other != name:
                graph.add_edge(other, name)
    return graph


def _start(draft: _Draft, name: str) -> int:
    layer = draft.layers[name]
    own = layer.start
    return own if own is not None else min(draft.index[node] for node in layer.nodes)


def _in_order(draft: _Draft, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: _start(draft, name)))


def _rename(draft: _Draft, merged: Merged) -> None:
    """Make each set of merged layers one layer under the first name."""
    for members in list(merged.to_sets()):
        first, *others = _in_order(draft, members)
        for name in others:
            layer = draft.layers.pop(name)
            draft.layers[first].nodes.extend(layer.nodes)
            for node in layer.nodes:
                draft.layer_of[node] = first


def _ordered(draft: _Draft) -> tuple[LayerNodes, ...]:
    starts = {name: _start(draft, name) for name in draft.layers}
    order = nx.lexicographical_topological_sort(_quotient(draft), key=starts.__getitem__)
    return tuple(
        LayerNodes(
            name=name,
            kind=draft.layers[name].kind,
            nodes=tuple(sorted(draft.layers[name].nodes, key=draft.index.__getitem__)),
        )
        for name in order
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
