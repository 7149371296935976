"""Sums, means and softmax over dimensions.

Over dimensions that are whole on each rank they act on slices. A sum over the sharded dimension is the
sum over the ranks of the slices' sums, and a mean is that sum divided by the whole size: both are
partial. A softmax over the sharded dimension needs all of it, so it fails.
"""

import torch
from torch import fx

from autopart.runtime.sharding.local_graph import LocalGraph
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.states import ShardState

aten = torch.ops.aten


def shard_sum(graph: LocalGraph, node: fx.Node) -> None:
    """Sum or average slices; over the sharded dimension the result is partial."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    graph.settle(x)
    state, rank = graph.states[x], len(graph.shape(x))
    if state.kind not in ("sharded", "sequence"):
        graph.put_whole(node)
        return
    dims = _reduced(node, rank)
    if state.dim not in dims:
        keeps = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim"))
        moved = state.dim - (0 if keeps else sum(d < state.dim for d in dims))
        kept = ShardState(state.kind, moved, state.parts, state.copies)
        graph.put_copied(node, kept, graph.local)
    elif state.kind == "sequence" or node.kwargs or state.copies > 1:
        if state.kind == "sharded":
            graph.fail(node, f"{operation_name(node)} over the sharded dimension")
        graph.put_whole(node)
    elif operation_name(node) == "sum":
        graph.put_partial(node, node.target, (graph.local(x), *node.args[1:]))
    else:
        own = graph.emit(node, node.target, graph.local(x), *node.args[1:])
        graph.put_partial(node, aten.div.Tensor, (own, graph.degree))


def shard_softmax(graph: LocalGraph, node: fx.Node) -> None:
    """Normalize slices over a dimension that is whole on each rank."""
    x, dim = node.args[:2]
    assert isinstance(x, fx.Node)
    graph.settle(x)
    state = graph.states[x]
    if state.kind not in ("sharded", "sequence"):
        graph.put_whole(node)
    elif int(dim) % len(graph.shape(x)) != state.dim:  # pyright: ignore[reportArgumentType]
        graph.put_copied(node, state, graph.local)
    elif state.kind == "sharded":
        graph.fail(node, f"{operation_name(node)} over the sharded dimension")
    else:
        graph.put_whole(node)


def _reduced(node: fx.Node, rank: int) -> set[int]:
    given = node.args[1] if len(node.args) > 1 else None
    if not given and not isinstance(given, int):
        return set(range(rank))
    dims = given if isinstance(given, list | tuple) else [given]
    return {int(d) % rank for d in dims}  # pyright: ignore[reportArgumentType]
