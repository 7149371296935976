"""Operations on each element, and norms over dimensions that are whole.

An element of the result depends on the same element of each input. So slices of the inputs give the
slice of the result, and no rank needs another's. Inputs that are broadcast along the sharded dimension
are read whole by all ranks; each rank's gradient for them is partial (`copy`).
"""

import torch
from torch import fx

from autopart.runtime.sharding.local_graph import LocalGraph
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.states import ShardState, sequence, sharded

_TAGGED = torch.Tag.pointwise
_MORE = frozenset(
    {
        "_to_copy", "alias", "clone", "contiguous", "detach", "dropout", "masked_fill",
        "native_dropout", "to", "type_as", "where",
    }
)  # fmt: skip
"""Operations on each element that torch does not tag."""


def is_pointwise(node: fx.Node) -> bool:
    """Tell whether each element of the result depends on the same element of the inputs."""
    tags = getattr(node.target, "tags", ())
    return _TAGGED in tags or operation_name(node) in _MORE


def shard_pointwise(graph: LocalGraph, node: fx.Node) -> None:
    """Work on slices; the module's text says why the result is equal.

    Partial sums may be added first and summed over the ranks once: both are sums. A result in the
    memory of its input (`add_`) needs that input as it is.
    """
    if _adds_partials(graph, node):
        first, second = node.all_input_nodes
        biases = (*graph.biases(first), *graph.biases(second))
        args = (graph.local(first), graph.local(second))
        graph.put_partial(node, node.target, args, biases)
        return
    for operand in node.all_input_nodes:
        graph.settle(operand)
    found = {
        _aligned(graph, node, n, graph.states[n])
        for n in node.all_input_nodes
        if graph.states[n].kind == "sharded"
    }
    if len(found) > 1:
        graph.fail(node, f"{operation_name(node)} has operands that are sharded differently")
    is_sequence = not found
    if is_sequence:
        found = {_aligned(graph, node, n, graph.states[n]) for n in graph.inputs(node, "sequence")}
    if len(found) != 1:
        graph.put_whole(node, "its input is whole")
        return
    state = found.pop()
    first = node.all_input_nodes[0]
    if _writes(node) and graph.states[first].kind == "replicated":
        if is_sequence:
            graph.put_whole(node)
            return
        graph.fail(node, f"{operation_name(node)} writes into a whole value")
    graph.put_sliced(
        node, state, lambda n: (_sliced(graph, node, n, state), _own_state(graph, n, state))
    )


def shard_norm(graph: LocalGraph, node: fx.Node) -> None:
    """Normalize slices, where the normalized dimensions are whole on each rank.

    A row's mean and variance need that row alone. The weights are read whole by all ranks.
    """
    x, sizes = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(sizes, list | tuple)
    graph.settle(x)
    state = graph.states[x]
    is_outside = state.dim < len(graph.shape(x)) - len(sizes)
    if state.kind == "replicated" or (state.kind == "sequence" and not is_outside):
        graph.put_whole(node, "norms stay whole without sequence parallelism")
    elif not is_outside:
        graph.fail(node, f"{operation_name(node)} needs all of '{x.name}'")
    else:
        graph.put_copied(
            node,
            state,
            lambda n: graph.local(n) if n is x else graph.whole(n, node, for_sharded=True),
        )


def _aligned(graph: LocalGraph, node: fx.Node, operand: fx.Node, state: ShardState) -> ShardState:
    """Return the state of the result along whose dimensions the operand's stand."""
    dim = state.dim + len(graph.shape(node)) - len(graph.shape(operand))
    if state.kind == "sequence":
        return sequence(dim)
    return sharded(dim, state.parts, state.copies)


def _own_state(graph: LocalGraph, operand: fx.Node, state: ShardState) -> ShardState | None:
    own = graph.states[operand]
    return own if own.kind == state.kind else None


def _sliced(graph: LocalGraph, node: fx.Node, operand: fx.Node, state: ShardState) -> fx.Node:
    if graph.states[operand].kind == state.kind:
        return graph.local(operand)
    if graph.states[operand].kind == "sequence" or not graph.is_tensor(operand):
        return graph.whole(operand, node, for_sharded=True)
    shape = graph.shape(operand)
    dim = state.dim - (len(graph.shape(node)) - len(shape))
    if dim < 0 or shape[dim] == 1:
        return graph.whole(operand, node, for_sharded=True)
    like = ShardState(state.kind, dim, state.parts, state.copies)
    if state.kind == "sharded" and graph.is_parameter(operand):
        return graph.shard_parameter(operand, node, like)
    return graph.slice_of(operand, node, like)


def _adds_partials(graph: LocalGraph, node: fx.Node) -> bool:
    """Tell whether the node adds two partial values of its own layer and shape."""
    inputs = node.all_input_nodes
    if operation_name(node) != "add" or node.kwargs or len(inputs) != 2:
        return False
    own = ("partial", graph.layer(node), graph.shape(node))
    return all((graph.states[n].kind, graph.layer(n), graph.shape(n)) == own for n in inputs)


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))
