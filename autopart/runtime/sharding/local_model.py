"""One rank's local graph as a captured model, and whole tensors from those of all ranks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autopart.runtime.capture.capture import Captured, CapturedLayer, CapturedValue
from autopart.runtime.capture.fingerprint import layer_fingerprint
from autopart.runtime.capture.subgraph import part_nodes
from autopart.runtime.models.attributes import attach, is_persistent, lookup
from autopart.runtime.sharding.collectives import joined_slices, own_slices
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.shard import ShardedGraph
from autopart.runtime.sharding.states import REPLICATED, ParameterShard


def local_model(sharded: ShardedGraph, rank: int) -> Captured:
    """Return the local graph of `rank` as a captured model with parameters of its own.

    Layers, values and inputs have the captured model's names, so that it is cut into stages alike.
    Before it runs, a group must be registered as `GROUP` (`groups.registered`). Parameters have the
    captured model's values; whole ones share its memory. Buffers are copied.
    """
    found = local_module(sharded, rank, {})
    whole = {name for name, state in sharded.states.items() if state == REPLICATED}
    with registered(GROUP, LoneRank(sharded.degree)):
        observe(found, sharded.captured, whole)
    return described(sharded.captured, found, sharded.layer_of)


def local_module(
    sharded: ShardedGraph, rank: int, state: Mapping[str, torch.Tensor]
) -> fx.GraphModule:
    """Return the local graph of `rank` alone, as `local_model` has it.

    `state` has whole parameters and buffers by name. The captured model's stand in for others.
    """
    captured = sharded.captured
    module, graph, env = nn.Module(), fx.Graph(), dict[fx.Node, fx.Node]()
    for node in sharded.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].name = node.name
    for name in {str(node.target): None for node in graph.find_nodes(op="get_attr")}:
        own = lookup(captured.module, name)
        if isinstance(own, torch.Tensor):
            _attach_tensor(sharded, module, name, state.get(name, own), rank)
        else:
            attach(module, name, own)
    return fx.GraphModule(module, graph)


def local_tensor(
    whole: torch.Tensor, shard: ParameterShard | None, degree: int, rank: int
) -> torch.Tensor:
    """Return the rank's slice of a whole parameter, gradient or optimizer state, as a new tensor.

    Without a shard it is the whole tensor itself.
    """
    if shard is None:
        return whole
    slices = own_slices(whole, shard.dim, shard.parts, degree // shard.copies, rank // shard.copies)
    return torch.cat([part.contiguous() for part in slices], shard.dim)


def whole_tensor(
    sharded: ShardedGraph, name: str, local: Sequence[torch.Tensor], *, is_gradient: bool = False
) -> torch.Tensor:
    """Return a whole parameter, or its gradient, from those of all ranks in their order.

    Ranks that hold the same slice, or a partial gradient, add up their gradients.
    """
    shard = sharded.shards.get(name)
    if shard is None:
        is_partial = is_gradient and name in sharded.partial_parameters
        return torch.stack(list(local)).sum(0) if is_partial else local[0]
    groups = [local[i : i + shard.copies] for i in range(0, len(local), shard.copies)]
    slices = [torch.stack(list(g)).sum(0) if is_gradient else g[0] for g in groups]
    return joined_slices(slices, shard.dim, shard.parts)


def _attach_tensor(
    sharded: ShardedGraph, module: nn.Module, name: str, whole: torch.Tensor, rank: int
) -> None:
    own = lookup(sharded.captured.module, name)
    if isinstance(own, nn.Parameter):
        local = local_tensor(whole.detach(), sharded.shards.get(name), sharded.degree, rank)
        attach(module, name, nn.Parameter(local, requires_grad=own.requires_grad))
    else:
        persistent = is_persistent(sharded.captured.module, name)
        attach(module, name, whole.detach().clone(), persistent=persistent)


def observe(module: fx.GraphModule, captured: Captured, whole: Collection[str]) -> None:
    """Give each node its local tensor without memory (`meta["val"]`), as a captured graph has it.

    Nodes named in `whole` have the captured tensors. All others are computed on fake tensors, so the groups that the
    graph names must be registered.
    """
    known = {node.name: node for node in captured.module.graph.nodes}
    mode = _fake_mode(captured)
    values: dict[fx.Node, Any] = {}
    with mode, torch.no_grad():
        for node in module.graph.nodes:
            node.meta = dict(node.meta)
            if node.op == "output":
                continue
            source = known.get(node.name) if node.name in whole else None
            if node.op == "get_attr":
                values[node] = _fake(lookup(module, str(node.target)))
                node.meta["val"] = None
            elif source is not None and source.meta.get("val") is not None:
                node.meta["val"] = values[node] = source.meta["val"]
            else:
                values[node] = _run(node, values)
                is_tensor = isinstance(values[node], torch.Tensor)
                node.meta["val"] = values[node] if is_tensor else None


def _run(node: fx.Node, values: Mapping[fx.Node, Any]) -> object:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _fake_mode(captured: Captured) -> FakeTensorMode:
    for node in captured.module.graph.nodes:
        if isinstance(value := node.meta.get("val"), FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def _fake(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def described(captured: Captured, module: fx.GraphModule, layer_of: Mapping[str, str]) -> Captured:
    """Return a local graph whose nodes have their tensors as a captured model."""
    nodes = {node.name: node for node in module.graph.nodes}
    after = {
        name: tuple(other for other in before if other in nodes)
        for name, before in captured.after.items()
        if name in nodes
    }
    values = tuple(_value(value, nodes[value.name]) for value in captured.values)
    gradients = {nodes[value.name]: value.has_gradient for value in values}
    local = replace(captured, module=module, values=values, layer_of=layer_of, after=after)
    layers = tuple(_layer(layer, local, gradients) for layer in captured.layers)
    return replace(local, layers=layers)


def _value(value: CapturedValue, node: fx.Node) -> CapturedValue:
    tensor = node.meta["val"]
    size = tensor.numel() * tensor.element_size()
    return replace(value, shape=tuple(tensor.shape), bytes=size)


def _layer(
    layer: CapturedLayer, local: Captured, gradients: Mapping[fx.Node, bool]
) -> CapturedLayer:
    graph = local.module.graph
    own = [node for node in graph.nodes if local.layer_of.get(node.name) == layer.name]
    part = part_nodes(graph, local.layer_of, local.after, {layer.name})
    outputs = {
        node for node in own if any(local.layer_of.get(u.name) != layer.name for u in node.users)
    }
    return replace(
        layer,
        nodes=tuple(node.name for node in own),
        fingerprint=layer_fingerprint(local.module, part, outputs, gradients),
    )
