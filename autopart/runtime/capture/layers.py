"""Which nodes of a traced graph form which layer.

A node belongs to the module that computed it (``nn_module_stack``). Going down from the root, a
module is *opened* where it is a list of layers or has one below it, and is one layer otherwise.
What an opened module computes itself, its *glue* (residual sums, concatenations), joins the layer
of its latest producer, or of its first consumer where it has none. Layers that cannot run apart
are merged, with a note that says why. Replicable nodes (masks, position ids) are in no layer: each
stage computes those that it needs.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import networkx as nx
import torch
from torch import fx, nn

from autopart.graph import LOSS
from autopart.runtime.capture.dataflow import Dataflow, dependencies, read_storages
from autopart.runtime.capture.opening import Call, call_stack, opened_modules

Merged: TypeAlias = "nx.utils.UnionFind[str]"

ROOT = "model"
"""The name of a layer of nodes that the root module computes itself, beside no other layer."""


@dataclass(frozen=True, slots=True)
class Group:
    """One layer: the nodes that it alone computes, in the order of the graph."""

    name: str
    kind: str
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Grouping:
    """All layers in a topological order that keeps the model's own order of execution."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def group_nodes(graph: fx.Graph, flow: Dataflow, model: nn.Module, granularity: str) -> Grouping:
    """Divide the graph's nodes into layers; `model` is the user's own module."""
    bound = [n for n in graph.nodes if _is_work(n) and n not in flow.replicable]
    index = {node: place for place, node in enumerate(graph.nodes)}
    draft = _Draft(flow, index, frozenset(bound))
    opened = opened_modules(bound, index, flow, model, granularity)
    for node in bound:
        draft.place(node, _closed_call(node, opened, model))
    draft.place_sources(reversed(bound), type(model).__name__)
    notes = _merge(draft, graph)
    return Grouping(groups=_ordered(draft), notes=tuple(notes))


def _is_work(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_module")


def _closed_call(node: fx.Node, opened: frozenset[str], model: nn.Module) -> tuple[str, str] | None:
    """Name and kind of the layer that the node's module stack says, or None for glue."""
    stack = call_stack(node)
    if stack is None:
        return LOSS, LOSS
    closed = next((call for call in stack if call.path not in opened), None)
    return None if closed is None else (closed.name, _kind(closed, model))


def _kind(call: Call, model: nn.Module) -> str:
    return type(model.get_submodule(call.path)).__name__


@dataclass(slots=True)
class _Layer:
    kind: str
    nodes: list[fx.Node] = field(default_factory=list)
    above: set[str] = field(default_factory=set)
    """The layers that this one needs, directly or not, as far as seen."""
    start: int | None = None
    """The place of the first node that is the layer's own, no glue."""


class _Draft:
    """Layers while nodes are still being handed out."""

    def __init__(
        self, flow: Dataflow, index: Mapping[fx.Node, int], bound: frozenset[fx.Node]
    ) -> None:
        self.flow = flow
        self.index = index
        self.bound = bound
        self.layers: dict[str, _Layer] = {}
        self.layer_of: dict[fx.Node, str] = {}

    def place(self, node: fx.Node, closed: tuple[str, str] | None) -> None:
        """Put a node into its module's layer, or, as glue, behind its latest producer."""
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
        """Put glue without producers (it needs parameters only) into the layer of its first
        consumer. Where only the loss consumes it, or nothing, it joins the layer before it."""
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
        """The producers' layer that no other of them comes after."""
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
    """Whether the node is one part of a structured output: it stays with its producer."""
    return node.target in (operator.getitem, getattr)


def _merge(draft: _Draft, graph: fx.Graph) -> list[str]:
    notes: list[str] = []
    merged: Merged = nx.utils.UnionFind(draft.layers)
    in_place: list[tuple[str, ...]] = []
    for members, reason in _inseparable(draft, graph):
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
            f"layers that write in place into what an earlier layer made are part of it: "
            f"{told}{more}"
        )
    circles: Merged = nx.utils.UnionFind(draft.layers)
    for circle in nx.strongly_connected_components(_quotient(draft)):
        if len(circle) > 1:
            names = _in_order(draft, circle)
            circles.union(*names)
            notes.append(
                f"layers {_listed(names)} are one layer: each of them needs what another makes"
            )
    _rename(draft, circles)
    return notes


def _inseparable(draft: _Draft, graph: fx.Graph) -> Iterable[tuple[set[fx.Node], str]]:
    """Sets of nodes that must run on one stage, and why; no reason where one writes in place
    into what another made."""
    yield from _sharing_a_storage(draft)
    for node in graph.nodes:
        if node in draft.bound and not _can_be_sent(draft.flow.facts[node].value):
            users = {user for user in node.users if user in draft.bound}
            if all(map(_takes_part, users)):
                continue  # which happens in its own layer
            why = (
                f"'{node.name}' is a number or a tensor whose shape depends on the data, and only "
                "tensors of fixed shapes can be sent"
            )
            yield {node, *users}, why


def _can_be_sent(value: object) -> bool:
    """A tensor whose shape is no matter of the data."""
    if not isinstance(value, torch.Tensor):
        return False
    return not any(isinstance(size, torch.SymInt) for size in value.shape)


def _sharing_a_storage(draft: _Draft) -> Iterable[tuple[set[fx.Node], str]]:
    flow, index = draft.flow, draft.index
    writers: dict[int, list[fx.Node]] = {}
    for node, written in flow.writes.items():
        if node in draft.bound:
            for storage in written:
                writers.setdefault(storage, []).append(node)
    touching: dict[int, set[fx.Node]] = {storage: set(ns) for storage, ns in writers.items()}
    for node in draft.bound:
        for storage in read_storages(node, flow) | flow.facts[node].storages:
            if storage in touching:
                touching[storage].add(node)
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
    """Make each set of merged layers one, under the name of the first."""
    for members in list(merged.to_sets()):
        first, *others = _in_order(draft, members)
        for name in others:
            layer = draft.layers.pop(name)
            draft.layers[first].nodes.extend(layer.nodes)
            for node in layer.nodes:
                draft.layer_of[node] = first


def _ordered(draft: _Draft) -> tuple[Group, ...]:
    starts = {name: _start(draft, name) for name in draft.layers}
    order = nx.lexicographical_topological_sort(_quotient(draft), key=starts.__getitem__)
    return tuple(
        Group(
            name=name,
            kind=draft.layers[name].kind,
            nodes=tuple(sorted(draft.layers[name].nodes, key=draft.index.__getitem__)),
        )
        for name in order
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
