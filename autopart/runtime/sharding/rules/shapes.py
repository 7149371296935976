"""Operations that move or divide dimensions: views, transpositions, splits, slices, concatenations.

They change places, never numbers. A sharded dimension may stay one of its own. It may also be merged
with others or divided, if it is the outermost of them. Then the slice of the result is the result on
the slice. Otherwise a rank's slice would not be contiguous, and the rule fails.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import fx

from autopart.runtime.sharding.local_graph import LocalGraph
from autopart.runtime.sharding.nodes import indivisible, operation_name
from autopart.runtime.sharding.states import ShardState, sharded

aten = torch.ops.aten


def shard_view(graph: LocalGraph, node: fx.Node) -> None:
    """Give the view its local sizes.

    The dimensions fall into groups of equal products. A sharded dimension that is the outermost of
    its group stays so: slice r of it is rows r*n/t to (r+1)*n/t of the group, in both shapes. A
    dimension of several parts becomes (parts, size) or stays one dimension.
    """
    x = node.args[0]
    assert isinstance(x, fx.Node)
    if graph.states[x].kind == "partial" and _keeps_biases(graph, node, x):
        graph.put_partial(node, node.target, (graph.local(x), *node.args[1:]), graph.biases(x))
        return
    graph.settle(x)
    state = graph.states[x]
    if state.kind != "replicated" and graph.shape(node) == graph.shape(x):
        graph.put(node, state, aten.alias.default, (graph.local(x),))
    elif state.kind == "sequence":
        graph.put_view_by_readers(node, x)
    elif state.kind == "replicated":
        graph.put_whole(node)
    else:
        new = _viewed(graph, node, x, state)
        sizes = list(graph.shape(node))
        sizes[new.dim] = sizes[new.dim] * new.copies // graph.degree
        graph.put(node, new, aten.reshape.default, (graph.local(x), sizes))


def shard_expand(graph: LocalGraph, node: fx.Node) -> None:
    """Repeat dimensions that are whole: each rank repeats its slice."""
    operand, sizes = _sharded_operand(graph, node), node.args[1]
    if operand is None:
        return
    x, state = operand
    assert isinstance(sizes, list | tuple)
    dim = state.dim + len(graph.shape(node)) - len(graph.shape(x))
    local: list[Any] = list(sizes)
    local[dim] = -1
    new = sharded(dim, state.parts, state.copies)
    graph.put(node, new, node.target, (graph.local(x), local), **node.kwargs)


def shard_permutation(graph: LocalGraph, node: fx.Node) -> None:
    """Move the sharded dimension to its new place. A moved parameter is sharded as its readers ask."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if graph.is_parameter(source):
        graph.put_view_by_readers(node, source)
        return
    operand = _sharded_operand(graph, node)
    if operand is None:
        return
    x, state = operand
    order = permuted(node, len(graph.shape(x)))
    new = sharded(order.index(state.dim), state.parts, state.copies)
    graph.put_copied(node, new, graph.local)


def permuted(node: fx.Node, rank: int) -> list[int]:
    """Return the dimension of the input at each place of a permutation's result."""
    order = list(range(rank))
    if operation_name(node) == "permute":
        assert isinstance(node.args[1], list | tuple)
        return [int(d) % rank for d in node.args[1]]  # pyright: ignore[reportArgumentType]
    first, second = (0, 1) if operation_name(node) == "t" else node.args[1:3]
    a, b = int(first) % rank, int(second) % rank  # pyright: ignore[reportArgumentType]
    order[a], order[b] = order[b], order[a]
    return order


def shard_division(graph: LocalGraph, node: fx.Node) -> None:
    """Divide a whole dimension, or a sharded one at the borders of its parts.

    Each rank has its slice of each part. So the local dimension divides into the parts' slices.
    """
    operand = _sharded_operand(graph, node)
    if operand is None:
        return
    x, state = operand
    shape, name = graph.shape(x), operation_name(node)
    place = 1 if name == "unbind" else 2
    given = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    dim = int(given) % len(shape)  # pyright: ignore[reportArgumentType]
    if dim != state.dim:
        _put_along_another(graph, node, state, dim, drops=name == "unbind")
        return
    sizes = _division(name, shape[dim], node)
    if name == "unbind" or state.parts != sizes:
        hint = () if state.parts or len(sizes) > 8 else sizes
        graph.fail(node, f"{name} divides the sharded dimension of '{x.name}'", parts=hint)
    local = [size // graph.degree for size in sizes]
    graph.put(node, sharded(dim), aten.split_with_sizes.default, (graph.local(x), local, dim))


def shard_element(graph: LocalGraph, node: fx.Node) -> None:
    """Take one of several results: it has their state."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    state = graph.states[source]
    if state.kind == "sharded":
        graph.put_copied(node, state, graph.local)
    else:
        graph.put_whole(node)


def shard_slice(graph: LocalGraph, node: fx.Node) -> None:
    """Take a range, or one place, of a whole dimension, or exactly one part of a sharded one."""
    operand = _sharded_operand(graph, node)
    if operand is None:
        return
    x, state = operand
    shape, name = graph.shape(x), operation_name(node)
    dim = int(node.args[1] if len(node.args) > 1 else 0) % len(shape)  # pyright: ignore[reportArgumentType]
    if dim != state.dim:
        _put_along_another(graph, node, state, dim, drops=name == "select")
        return
    taken = graph.shape(node)[dim] if name == "slice" else 0
    if taken == shape[dim]:
        graph.put(node, state, aten.alias.default, (graph.local(x),))
        return
    start = (node.args[2] if len(node.args) > 2 else 0) or 0
    graph.fail(node, f"{name} from {start} on cuts the sharded dimension of '{x.name}'")


def shard_concatenation(graph: LocalGraph, node: fx.Node) -> None:
    """Join along a whole dimension. An empty tensor adds nothing."""
    pieces = node.args[0]
    assert isinstance(pieces, list | tuple)
    nodes = [piece for piece in pieces if isinstance(piece, fx.Node)]
    for piece in nodes:
        graph.settle(piece)
    full = [n for n in nodes if math.prod(graph.shape(n))]
    if len(full) == 1 and graph.states[full[0]].kind in ("sharded", "sequence"):
        graph.put(node, graph.states[full[0]], aten.alias.default, (graph.local(full[0]),))
        return
    states = {graph.states[n] for n in nodes if graph.states[n].kind == "sharded"}
    if not states:
        graph.put_whole(node)
        return
    state = states.pop()
    stacks = operation_name(node) == "stack"
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim = int(given) % len(graph.shape(node))  # pyright: ignore[reportArgumentType]
    if states or (dim == state.dim and not stacks):
        graph.fail(node, f"{operation_name(node)} joins along the sharded dimension")
    moved = state.dim + (stacks and dim <= state.dim)

    def local(piece: fx.Node) -> fx.Node:
        is_sharded = graph.states[piece].kind == "sharded"
        return graph.local(piece) if is_sharded else graph.slice_of(piece, node, state)

    graph.put_copied(node, sharded(moved, state.parts, state.copies), local)


def _sharded_operand(graph: LocalGraph, node: fx.Node) -> tuple[fx.Node, ShardState] | None:
    """Return the first operand and its state where it is sharded; else write the node whole."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    graph.settle(x)
    state = graph.states[x]
    if state.kind == "sharded":
        return x, state
    graph.put_whole(node)
    return None


def _put_along_another(
    graph: LocalGraph, node: fx.Node, state: ShardState, dim: int, *, drops: bool
) -> None:
    """Write an operation along a whole dimension `dim`, which the result may lack (`drops`)."""
    moved = state.dim - (drops and dim < state.dim)
    graph.put_copied(node, sharded(moved, state.parts, state.copies), graph.local)


class _Group(NamedTuple):
    """Dimensions of two shapes with equal products; those of size 1 are left out."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def _viewed(graph: LocalGraph, node: fx.Node, x: fx.Node, state: ShardState) -> ShardState:
    before, after = graph.shape(x), graph.shape(node)
    group = _group(before, after, state.dim)
    if not group.before or group.before[0] != state.dim or not group.after:
        graph.fail(node, f"the sharded dimension of '{x.name}' is not the outermost of its group")
    lead, sizes = group.after[0], [after[d] for d in group.after]
    if state.parts:
        is_divided = len(sizes) > 1
        if is_divided and sizes[0] == len(state.parts) and len(set(state.parts)) == 1:
            lead, parts = group.after[1], ()
        elif not is_divided and len(group.before) == 1:
            parts = state.parts
        else:
            graph.fail(node, f"the view of '{x.name}' divides its parts")
    else:
        parts = ()
    slices = graph.degree // state.copies
    if after[lead] % slices:
        heads, k = len(sizes) == 2, sizes[0]
        packed = len(sizes) > 2 and k <= 4 and sizes[1] % graph.degree == 0 and not state.parts
        shared = heads and state.copies == 1 and not state.parts and graph.degree % k == 0
        graph.fail(
            node,
            indivisible(f"'{x.name}' is divided into", after[lead], graph.degree),
            parts=(before[state.dim] // k,) * k if packed else (),
            copies=graph.degree // k if shared else 1,
        )
    return sharded(lead, parts, state.copies)


def _group(before: tuple[int, ...], after: tuple[int, ...], dim: int) -> _Group:
    i = j = 0
    while i < len(before):
        i0, j0 = i, j
        a, i = before[i], i + 1
        b, j = (after[j], j + 1) if j < len(after) else (1, j)
        while a != b:
            if a < b:
                a, i = a * before[i], i + 1
            else:
                b, j = b * after[j], j + 1
        if i0 <= dim < i:
            return _Group(
                tuple(d for d in range(i0, i) if before[d] > 1),
                tuple(d for d in range(j0, j) if after[d] > 1),
            )
    return _Group((), ())


def _division(name: str, size: int, node: fx.Node) -> tuple[int, ...]:
    """Return the sizes into which the dimension is divided."""
    given = node.args[1] if len(node.args) > 1 else 1
    if name == "unbind":
        return (1,) * size
    if isinstance(given, list | tuple):
        return tuple(int(n) for n in given)  # pyright: ignore[reportArgumentType]
    step = -(-size // int(given)) if name == "chunk" else int(given)  # pyright: ignore[reportArgumentType]
    return tuple(min(step, size - start) for start in range(0, size, step))


def _keeps_biases(graph: LocalGraph, node: fx.Node, x: fx.Node) -> bool:
    """Tell whether a view stays in its layer, and leaves the dimension that biases stand along."""
    same = graph.shape(node)[-1:] == graph.shape(x)[-1:]
    return graph.layer(node) == graph.layer(x) and (same or not graph.biases(x))
