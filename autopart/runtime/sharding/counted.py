"""The collectives of a local graph, layer by layer: kind, bytes, phase, and what hides them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart.records.group_variants import Collective, LayerCollectives, Phase
from autopart.records.rank_group import Among
from autopart.runtime.capture.capture import Captured
from autopart.runtime.models.attributes import lookup
from autopart.runtime.sharding.collectives import copy, gather, reduce, scatter, take
from autopart.runtime.sharding.context.exchange import gather_positions
from autopart.runtime.sharding.context.expert_exchange import (
    from_experts,
    gather_counts,
    to_experts,
)
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.context.rules.sums import mean_over_positions
from autopart.runtime.sharding.context.states import CONTEXT, EXPERT
from autopart.runtime.sharding.cross_entropy import sharded_cross_entropy
from autopart.runtime.sharding.group_graphs import GroupGraphs
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.nodes import nodes_with_gradient, operation_name
from autopart.runtime.sharding.rules.contractions import GROUPED

PRODUCTS = frozenset({"linear", "addmm", "mm", "matmul", "bmm", "einsum", *GROUPED})
VIEWS = frozenset({"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"})
Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ring"]
_OF_RESULT: dict[object, Kind] = {
    reduce: "all_reduce",
    gather: "all_gather",
    gather_counts: "all_gather",
    to_experts: "all_to_all",
    from_experts: "all_to_all",
}
"""Functions with a collective in their forward whose bytes are those of their result."""
LOSS_EXCHANGES = 3
"""All-reduces of one number per row in a sharded cross-entropy: maximum, target's logit, sum."""


def layer_collectives(graphs: GroupGraphs, local: Captured) -> tuple[LayerCollectives, ...]:
    """Return `count_collectives` as a profile has them, in the order of the layers."""
    found = count_collectives(graphs, local)
    return tuple(
        LayerCollectives(layer=layer.name, collectives=found[layer.name])
        for layer in local.layers
        if layer.name in found
    )


def count_collectives(graphs: GroupGraphs, local: Captured) -> Mapping[str, tuple[Collective, ...]]:
    """Return each layer's collectives for one microbatch, and those due once a step.

    `local` is any rank's local graph. Layers without collectives are left out. A forward
    collective is recomputed where an operation behind it keeps a tensor: torch's second forward
    stops at the last kept tensor.
    """
    graph = local.module.graph
    degrees = {
        GROUP: graphs.tensor_degree,
        CONTEXT: graphs.context_degree,
        EXPERT: graphs.expert_degree,
    }
    trained = nodes_with_gradient(local.module)
    last = _last_keepers(local, graphs)
    found: dict[str, list[Collective]] = {layer.name: [] for layer in local.layers}
    for place, node in enumerate(graph.nodes):
        layer = local.layer_of.get(node.name)
        if layer is not None:
            recomputed = place <= last.get(layer, -1)
            found[layer] += _of_forward(node, degrees, recomputed)
    for node in reversed(graph.nodes):
        layer = local.layer_of.get(node.name)
        if layer is not None and node in trained:
            found[layer] += _of_backward(node, degrees)
    for layer, one in _once_a_step(graphs, local):
        found[layer].append(one)
    return {layer: tuple(those) for layer, those in found.items() if those}


def _of_forward(
    node: fx.Node, degrees: Mapping[str, int], recomputed: bool
) -> Iterator[Collective]:
    among = _among(node)

    def listed(kind: Kind, size: int) -> Collective:
        return Collective(
            kind=kind, bytes=size, phase="forward", recomputed=recomputed, among=among
        )

    if node.target in _OF_RESULT:
        yield listed(_OF_RESULT[node.target], _bytes(node))
    elif node.target is scatter:
        yield listed("reduce_scatter", _bytes(node) * degrees[_group(node)])
    elif node.target is gather_positions:
        yield listed("all_gather", _gathered_bytes(node, degrees))
    elif node.target is ring_attention:
        yield listed("ring", _ring_bytes(node, degrees))
    elif node.target is mean_over_positions:
        value = node.meta["val"]
        yield listed("all_reduce", 2 * max(4, value.element_size()))
    elif node.target is sharded_cross_entropy:
        logits = node.args[0]
        assert isinstance(logits, fx.Node)
        value = logits.meta["val"]
        size = value.shape[0] * max(4, value.element_size())
        for _ in range(LOSS_EXCHANGES):
            yield listed("all_reduce", size)


def _of_backward(node: fx.Node, degrees: Mapping[str, int]) -> Iterator[Collective]:
    source = node.args[0] if node.args else None
    of_parameter = isinstance(source, fx.Node) and source.op == "get_attr"
    phase: Phase = "weight_grad" if of_parameter else "input_grad"
    among = _among(node)
    # The gradient of a product's input is summed while the product's weight gradient is computed.
    hides = not of_parameter and _feeds_product(node)
    beneath = "weight_grad" if hides else None
    if node.target is copy:
        size = _bytes(node)
        yield Collective(kind="all_reduce", bytes=size, phase=phase, beneath=beneath, among=among)
    elif node.target is gather and node.args[2]:
        size = _bytes(node)
        yield Collective(
            kind="reduce_scatter", bytes=size, phase=phase, beneath=beneath, among=among
        )
    elif node.target is gather_positions:
        size = _gathered_bytes(node, degrees)
        yield Collective(kind="reduce_scatter", bytes=size, phase=phase, among=among)
    elif node.target is ring_attention:
        yield Collective(kind="ring", bytes=_ring_bytes(node, degrees), phase=phase, among=among)
    elif node.target in (to_experts, from_experts):
        yield Collective(kind="all_to_all", bytes=_bytes(node), phase=phase, among=among)
    elif node.target in (scatter, take):
        size = _bytes(node) * degrees[_group(node)]
        yield Collective(kind="all_gather", bytes=size, phase=phase, among=among)


def _group(node: fx.Node) -> str:
    """The name of the group in which a node exchanges: its last argument."""
    return str(node.args[-1])


def _among(node: fx.Node) -> Among | msgspec.UnsetType:
    last = node.args[-1] if node.args else None
    if last == CONTEXT:
        return "context"
    return "expert" if last == EXPERT else msgspec.UNSET


def _gathered_bytes(node: fx.Node, degrees: Mapping[str, int]) -> int:
    """Bytes of all tensors that one message gathers, with all their positions."""
    return sum(_bytes(one) for one in node.all_input_nodes) * degrees[_group(node)]


def _ring_bytes(node: fx.Node, degrees: Mapping[str, int]) -> int:
    """Bytes of the keys and values of all blocks."""
    operands = node.args[1:3]
    return degrees[_group(node)] * sum(_bytes(x) for x in operands if isinstance(x, fx.Node))


def _feeds_product(node: fx.Node) -> bool:
    """Tell whether a product reads the node or a view of it."""
    return any(
        operation_name(user) in PRODUCTS or (operation_name(user) in VIEWS and _feeds_product(user))
        for user in node.users
    )


def _once_a_step(graphs: GroupGraphs, local: Captured) -> Iterator[tuple[str, Collective]]:
    """Yield one sum per layer and group: gradients of parameters that several ranks have, and that differ.

    A tied parameter counts in its first layer.
    """
    sharded, passes = graphs.sharded, (graphs.context, graphs.experts)
    seen: set[str] = set()
    for layer in local.layers:
        size, over = 0, Counter[Among]()
        for name in layer.parameters:
            shard = None if sharded is None else sharded.shards.get(name)
            is_shared = shard is not None and shard.copies > 1
            parameter = lookup(local.module, name)
            if name in seen or not parameter.requires_grad:
                continue
            seen.add(name)
            if is_shared or (sharded is not None and name in sharded.partial_parameters):
                size += parameter.nbytes
            for one in passes:
                if one is not None and name in one.partial_parameters:
                    over["context" if one.group == CONTEXT else "expert"] += parameter.nbytes
        for among, partial in over.items():
            one = Collective(kind="all_reduce", bytes=partial, phase="step", among=among)
            yield layer.name, one
        if size:
            yield layer.name, Collective(kind="all_reduce", bytes=size, phase="step")


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.numel() * value.element_size()


def _last_keepers(local: Captured, graphs: GroupGraphs) -> dict[str, int]:
    """Return each layer's last node, by its place, that keeps a tensor for its backward.

    The graph runs once on tensors without memory.
    """
    values: dict[fx.Node, Any] = {}
    last: dict[str, int] = {}
    running: list[fx.Node] = []
    places = {node: place for place, node in enumerate(local.module.graph.nodes)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        layer = local.layer_of.get(running[-1].name)
        if layer is not None:
            last[layer] = places[running[-1]]
        return tensor

    mode = _mode_of(local)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with mode, hooks, graphs.alone():
        for node in local.module.graph.nodes:
            running.append(node)
            if node.op == "placeholder":
                values[node] = node.meta["val"]
            elif node.op == "get_attr":
                values[node] = _fake(lookup(local.module, str(node.target)))
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return last


def _mode_of(local: Captured) -> FakeTensorMode:
    for node in local.module.graph.find_nodes(op="placeholder"):
        return node.meta["val"].fake_mode
    return FakeTensorMode()


def _fake(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    own = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return nn.Parameter(own, requires_grad=value.requires_grad) if value.is_leaf else own
