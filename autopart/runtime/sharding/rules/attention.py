"""Attention by heads.

Heads do not see each other: the output of a head is softmax(q k' / sqrt(d) + mask) v with that head's
own q, k and v. So the slices of the heads give the slice of the output.
"""

import torch
from torch import fx

from autopart.runtime.sharding.collectives import own_copy
from autopart.runtime.sharding.local_graph import GROUP, LocalGraph
from autopart.runtime.sharding.states import ShardState, sharded

aten = torch.ops.aten


def shard_attention(graph: LocalGraph, node: fx.Node) -> None:
    """Attend with the rank's own heads.

    With fewer key-value heads than ranks, consecutive ranks hold the same one, as Megatron does.
    Rank r has query heads r*q/t to (r+1)*q/t, and all of them read key-value head r*kv/t. A graph
    that has repeated key and value for the query heads hands each rank the repetitions of its own.
    """
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node)
    for operand in node.all_input_nodes:
        graph.settle(operand)
    if not graph.inputs(node, "sharded"):
        graph.put_whole(node)
        return
    heads = len(graph.shape(query)) - 3
    state = sharded(heads)
    if heads < 0 or graph.states[query] != state:
        graph.fail(node, "attention whose queries are not sharded by heads")
    wide = graph.shape(query)[heads]

    def local(operand: fx.Node) -> tuple[fx.Node, ShardState | None]:
        own = graph.states[operand]
        if operand in (query, key, value):
            if own.kind != "sharded" or (own.dim, own.parts) != (heads, ()):
                graph.fail(node, "attention whose keys and values are not sharded by heads")
            if own.copies > 1 and graph.shape(operand)[heads] == wide:
                args = (graph.local(operand), heads, own.copies, GROUP)
                return graph.emit(node, own_copy, *args), state
            return graph.local(operand), own
        return _mask(graph, node, operand, state)

    graph.put_sliced(node, state, local)


def _mask(
    graph: LocalGraph, node: fx.Node, mask: fx.Node, state: ShardState
) -> tuple[fx.Node, ShardState | None]:
    """Return the mask: by heads where it has them, else whole."""
    if graph.states[mask].kind == "sharded":
        if graph.states[mask] != state:
            graph.fail(node, "attention whose mask is not sharded by heads")
        return graph.local(mask), state
    shape, query = graph.shape(mask), node.args[0]
    assert isinstance(query, fx.Node)
    dim = state.dim - (len(graph.shape(query)) - len(shape))
    if dim < 0 or shape[dim] == 1:
        return graph.whole(mask, node, for_sharded=True), None
    return graph.slice_of(mask, node, sharded(dim)), sharded(dim)
