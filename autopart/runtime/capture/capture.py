"""A training model as layers, from which stages are cut."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import fx, nn

from autopart.errors import ModelError
from autopart.runtime.capture.autocast import Autocast, autocast_of, entered
from autopart.runtime.capture.checkpoints import CheckpointedLayers, checkpointed_layers
from autopart.runtime.capture.dataflow import Dataflow, facts_and_writes, find_dependencies
from autopart.runtime.capture.fingerprint import graph_hash, layer_fingerprint
from autopart.runtime.capture.layer_grouping import LayerNodes, group_nodes
from autopart.runtime.capture.simplify import copy_changed_inputs, simplify
from autopart.runtime.capture.subgraph import part_nodes
from autopart.runtime.capture.tracing import Traced, batch_leaf_names
from autopart.runtime.capture.uncapturable_modules import trace_model
from autopart.runtime.models.attributes import lookup, user_name
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.runtime.models.tensor_plan import Style

Granularity = Literal["block", "module"]


@dataclass(frozen=True, slots=True)
class CapturedLayer:
    """One layer in a captured model."""

    name: str
    """Path of the layer's module in the user's model. A module's second call is ``path@1``."""
    kind: str
    """Class name of the layer's module, or "loss"."""
    nodes: tuple[str, ...]
    """Names of the graph nodes that only this layer computes, in order."""
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    fingerprint: str
    """Hash that layers share if they do the same work on the same shapes."""


@dataclass(frozen=True, slots=True)
class CapturedValue:
    """A tensor that one layer makes and later layers need."""

    name: str
    producer: str
    consumers: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    has_gradient: bool
    """Whether a gradient of the loss flows back through the tensor."""


@dataclass(frozen=True, slots=True)
class CapturedInput:
    """A tensor leaf of the batch."""

    name: str
    consumers: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


@dataclass(frozen=True, slots=True)
class Captured:
    """A model's loss as a flat graph, divided into layers."""

    module: fx.GraphModule
    """Graph that takes the batch's tensor leaves and returns the loss.

    It contains the model's own parameter objects.
    """
    layers: tuple[CapturedLayer, ...]
    """Layers in a topological order that is also the model's own order."""
    values: tuple[CapturedValue, ...]
    """Values in the order in which the layers make them."""
    inputs: tuple[CapturedInput, ...]
    tied: Mapping[str, tuple[str, ...]]
    """Parameters that more than one layer reads, each with these layers."""
    graph_hash: str
    """Hash over the layers' names, operations, shapes and dtypes, without weights and device."""
    warnings: tuple[str, ...]
    layer_of: Mapping[str, str]
    """Layer name for each node name. Any stage that needs a missing node computes it itself."""
    after: Mapping[str, tuple[str, ...]]
    """For each node name, nodes that must run earlier though it does not take their results."""
    constants: Mapping[str, object]
    """Batch leaves that are no tensors, by name. The graph is correct for these values only."""
    checkpointed: CheckpointedLayers
    """Layers that the model checkpoints itself. The graph does not."""
    autocast: Autocast | None = None
    """Autocast under which the graph was captured and must run."""
    weight_styles: Mapping[str, Style] = field(default_factory=dict[str, Style])
    """How the model wants parameters sharded over a tensor group, by name. Others are left to the pass."""


def capture_model(
    model: TrainingModel,
    batch: Batch,
    *,
    granularity: Granularity = "block",
    autocast: torch.dtype | None = None,
) -> Captured:
    """Capture the loss of `model`, in its modules' own modes, for batches shaped as `batch`.

    `granularity` "block" gives one layer for each block, "module" one for each leaf module. Under
    `autocast` to a dtype, values have the dtypes that autocast gives them, and the graph hash
    differs. It works on the meta device and leaves the model unchanged. Raises ModelError where the
    model does not run on the batch or its loss cannot be trained.
    """
    under = autocast_of(model, autocast)
    with entered(under):
        traced = trace_model(model, batch)
        flow = _observe(traced)
    _check_trainable(traced.module, flow, model.name)
    _check_writes(traced.module, flow, model.name)
    grouping = group_nodes(traced.module.graph, flow, model.model, granularity)
    for node in traced.module.graph.nodes:
        node.meta["val"] = _example(flow.facts[node].value) if node.op != "get_attr" else None
    traced.module.recompile()
    described = _described(traced, flow, grouping.groups, (*traced.notes, *grouping.notes))
    return replace(described, autocast=under, weight_styles=model.weight_styles)


def batch_leaves(captured: Captured, batch: Batch) -> dict[str, torch.Tensor]:
    """Return one microbatch's tensors by input name.

    Raises ModelError where the batch differs from the captured one: a leaf is missing or extra, or
    a shape, a dtype or a constant differs.
    """
    given = dict(batch_leaf_names(batch))
    tensors = {name: leaf for name, leaf in given.items() if isinstance(leaf, torch.Tensor)}
    for name, constant in captured.constants.items():
        if name not in given or not _same_constant(given[name], constant):
            raise ModelError(
                f"batch leaf '{name}' is {given.get(name)!r}, but the model was captured with "
                f"{constant!r}; give each microbatch the same"
            )
    wanted = {leaf.name: leaf for leaf in captured.inputs}
    unknown, missing = sorted(tensors.keys() - wanted), sorted(wanted.keys() - tensors)
    if unknown or missing:
        fault = (
            f"has no tensor '{missing[0]}'" if missing else f"has one more tensor, '{unknown[0]}'"
        )
        raise ModelError(
            f"this batch {fault}; the model was captured with {', '.join(wanted) or 'none'}"
        )
    for name, leaf in wanted.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != leaf.shape or tensor.dtype != leaf.dtype:
            raise ModelError(
                f"batch tensor '{name}' has shape {tuple(tensor.shape)} and {tensor.dtype}, but "
                f"the model was captured with {leaf.shape} and {leaf.dtype}; pad the batch or "
                "profile the model for this shape"
            )
    return {name: tensors[name] for name in wanted}


def _observe(traced: Traced) -> Dataflow:
    flow = facts_and_writes(traced)
    if copy_changed_inputs(traced.module.graph, flow):
        traced.module.recompile()
        flow = facts_and_writes(traced)
    simplify(traced.module.graph, flow)
    find_dependencies(traced.module, flow)
    return flow


def _check_trainable(module: fx.GraphModule, flow: Dataflow, name: str) -> None:
    loss = module.graph.output_node().args[0]
    if not isinstance(loss, fx.Node) or not flow.facts[loss].has_gradient:
        raise ModelError(
            f"{name}: no parameter that requires a gradient has a part in the loss; unfreeze one, "
            "and check that the loss is not computed under no_grad"
        )


def _check_writes(module: fx.GraphModule, flow: Dataflow, name: str) -> None:
    """Refuse a forward that changes a trained parameter, which other microbatches still need."""
    written = {storage for storages in flow.writes.values() for storage in storages}
    for node in module.graph.find_nodes(op="get_attr"):
        value = lookup(module, str(node.target))
        is_trained = isinstance(value, nn.Parameter) and value.requires_grad
        if is_trained and not written.isdisjoint(flow.facts[node].storages):
            raise ModelError(
                f"{name}: the forward writes into the parameter '{user_name(str(node.target))}', but "
                "backwards of earlier microbatches still need its value; change it after the "
                "optimizer's step"
            )


def _example(value: object) -> object:
    """Return a fake tensor without its autograd graph."""
    return value.detach() if isinstance(value, torch.Tensor) else None


def _same_constant(value: object, constant: object) -> bool:
    if isinstance(constant, bool | int | float | str):
        return value == constant
    return type(value) is type(constant)


def _described(
    traced: Traced, flow: Dataflow, groups: Iterable[LayerNodes], notes: tuple[str, ...]
) -> Captured:
    graph = traced.module.graph
    layer_of = {node.name: group.name for group in groups for node in group.nodes}
    after = {n.name: tuple(b.name for b in before) for n, before in flow.after.items()}
    parts = {g.name: part_nodes(graph, layer_of, after, {g.name}) for g in groups}
    tied: dict[str, list[str]] = {}
    for layer, part in parts.items():
        for name in _state_names(part, traced, nn.Parameter):
            tied.setdefault(name, []).append(layer)
    names = {leaf.name for leaf in traced.leaves if isinstance(leaf.value, torch.Tensor)}
    return Captured(
        module=traced.module,
        layers=tuple(_layer(g, parts[g.name], traced, flow, layer_of) for g in groups),
        values=_values(groups, flow, layer_of),
        inputs=tuple(
            _input(node, [name for name, part in parts.items() if node in part], flow)
            for node in graph.find_nodes(op="placeholder")
        ),
        tied={name: tuple(layers) for name, layers in tied.items() if len(layers) > 1},
        graph_hash=graph_hash(traced.module, layer_of, set(traced.names.values())),
        warnings=notes,
        checkpointed=checkpointed_layers(graph, [g.name for g in groups], layer_of),
        layer_of=layer_of,
        after=after,
        constants={leaf.name: leaf.value for leaf in traced.leaves if leaf.name not in names},
    )


def _values(
    groups: Iterable[LayerNodes], flow: Dataflow, layer_of: Mapping[str, str]
) -> tuple[CapturedValue, ...]:
    place = {group.name: index for index, group in enumerate(groups)}
    found: list[CapturedValue] = []
    for node, fact in flow.facts.items():
        producer = layer_of.get(node.name)
        users = {layer_of[user.name] for user in node.users if user.name in layer_of}
        consumers = sorted(users - {producer}, key=place.__getitem__)
        if producer is not None and consumers:
            tensor = fact.value
            assert isinstance(tensor, torch.Tensor), f"only tensors can be sent, not {node.name}"
            found.append(
                CapturedValue(
                    name=node.name,
                    producer=producer,
                    consumers=tuple(consumers),
                    shape=tuple(tensor.shape),
                    dtype=tensor.dtype,
                    bytes=tensor.numel() * tensor.element_size(),
                    has_gradient=fact.has_gradient,
                )
            )
    return tuple(found)


def _input(node: fx.Node, consumers: list[str], flow: Dataflow) -> CapturedInput:
    tensor = flow.facts[node].value
    return CapturedInput(
        name=node.name,
        consumers=tuple(consumers),
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        bytes=tensor.numel() * tensor.element_size(),
    )


def _layer(
    group: LayerNodes,
    part: list[fx.Node],
    traced: Traced,
    flow: Dataflow,
    layer_of: Mapping[str, str],
) -> CapturedLayer:
    outputs = {
        node
        for node in group.nodes
        if any(layer_of.get(user.name) != group.name for user in node.users)
    }
    gradients = {node: fact.has_gradient for node, fact in flow.facts.items()}
    return CapturedLayer(
        name=group.name,
        kind=group.kind,
        nodes=tuple(node.name for node in group.nodes),
        parameters=_state_names(part, traced, nn.Parameter),
        buffers=_state_names(part, traced, torch.Tensor),
        fingerprint=layer_fingerprint(traced.module, part, outputs, gradients),
    )


def _state_names(
    part: Iterable[fx.Node], traced: Traced, kind: type[torch.Tensor]
) -> tuple[str, ...]:
    """Return the user's names for the parameters, or the buffers, that the nodes read."""
    found: dict[str, None] = {}
    for node in part:
        if node.op in ("get_attr", "call_module"):
            value = lookup(traced.module, str(node.target))
            inside = (
                [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else [value]
            )
            for tensor in inside:
                is_parameter = isinstance(tensor, nn.Parameter)
                if id(tensor) in traced.names and is_parameter == (kind is nn.Parameter):
                    found[traced.names[id(tensor)]] = None
    return tuple(found)
