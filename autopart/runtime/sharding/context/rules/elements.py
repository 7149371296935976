"""Operations on each element, and on each row, of a rank's positions.

An element of the result depends on the same element of each input, or on the row through it along other dimensions.
So the rank's positions of the inputs give its positions of the result. Inputs without positions are
read whole by all ranks. Their gradients are partial (`gradients.py`).
"""

from collections.abc import Mapping

from torch import fx

from autopart.runtime.sharding.context.arguments import arguments, dimension, writes
from autopart.runtime.sharding.context.builder import ContextBuilder
from autopart.runtime.sharding.context.states import Reference, Rows
from autopart.runtime.sharding.nodes import operation_name

Demands = Mapping[fx.Node, Rows | None]

_VIEWS = frozenset({"slice", "select", "transpose", "permute", "unsqueeze", "squeeze"})
_KEEP_REFERENCES = frozenset({"to", "_to_copy", "clone", "contiguous", "detach", "alias"})


def element_rows(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """The rows of the result, which all cut inputs share."""
    found = {_aligned(graph, node, n, r.plain) for n in _tensors(node) if (r := graph.rows(n))}
    if len(found) > 1:
        graph.fail(node, "has operands with different positions")
    referring = [r for n in _tensors(node) if (r := graph.rows(n)) and r.refers]
    if not found:
        return None
    return found.pop() if not referring else _referring(graph, node, referring[0])


def element_demands(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of each input; whole where it is broadcast along the positions."""
    found: dict[fx.Node, Rows | None] = {}
    for place, operand in enumerate(_tensors(node)):
        shape = graph.shape(operand)
        dim = rows.dim - (len(graph.shape(node)) - len(shape))
        found[operand] = None if dim < 0 or shape[dim] == 1 else rows.plain.at(dim)
        if place == 0 and writes(node) and graph.states.get(viewed_tensor(operand)) is None:
            graph.unsound = f"{graph.described(node)} writes into the whole '{operand.name}'"
            graph.written.add(viewed_tensor(operand))
    return found


def viewed_tensor(node: fx.Node) -> fx.Node:
    """Return the tensor of which a node is a view, through ranges and moved dimensions; else the node itself."""
    while operation_name(node) in _VIEWS and isinstance(source := node.args[0], fx.Node):
        node = source
    return node


def _referring(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Rows:
    name, divisor = operation_name(node), node.args[1] if len(node.args) > 1 else None
    if name in _KEEP_REFERENCES:
        return rows
    refers = rows.refers
    assert refers is not None
    is_division = name == "floor_divide" or (
        name == "div" and node.kwargs.get("rounding_mode") == "floor"
    )
    inner = refers.length // (refers.rows.size * refers.rows.outer)
    if not is_division or not isinstance(divisor, int) or inner % divisor:
        graph.fail(node, "computes with the places of sorted tokens")
    shorter = Reference(refers.rows, refers.length // divisor)
    return Rows(rows.dim, rows.size, rows.outer, rows.kind, rows.slices, shorter)


def row_wise(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """The rows of an operation along other dimensions than the positions'."""
    x = node.all_input_nodes[0]
    rows = element_rows(graph, node) if _is_like(graph, node, x) else graph.rows(x)
    if rows is None:
        return None
    rank = len(graph.shape(x))
    given = arguments(node)
    asked = given.get("dim", given.get("normalized_shape"))
    if "normalized_shape" in given:
        dims = set(range(rank - len(given["normalized_shape"]), rank))
    elif asked is None or asked == []:
        dims = set(range(rank))
    else:
        dims = {dimension(d, rank) for d in (asked if isinstance(asked, list | tuple) else [asked])}
    if rows.dim in dims:
        return None
    is_kept = bool(given.get("keepdim", True)) or "keepdim" not in given
    return rows.at(rows.dim if is_kept else rows.dim - sum(d < rows.dim for d in dims))


def row_wise_demands(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of each input of an operation whose result has its dimensions."""
    x = node.all_input_nodes[0]
    own = graph.rows(x)
    if own is None:
        given = arguments(node)
        if not _is_like(graph, node, x) or "keepdim" in given or "normalized_shape" in given:
            return None
        own = rows.plain
    rank = len(graph.shape(x))
    same = {n: own.plain for n in _tensors(node) if len(graph.shape(n)) == rank}
    return {n: same.get(n) for n in _tensors(node)}


def _is_like(graph: ContextBuilder, node: fx.Node, x: fx.Node) -> bool:
    return graph.is_tensor(node) and len(graph.shape(node)) == len(graph.shape(x))


def embedding_rows(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """The rows of looked-up vectors are those of their numbers."""
    table, index = node.args[:2]
    assert isinstance(table, fx.Node)
    assert isinstance(index, fx.Node)
    if graph.states[table] is not None:
        graph.fail(node, "looks up a table that depends on positions")
    return graph.rows(index)


def embedding_demands(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The numbers on the rank's positions, and the whole table."""
    table, index = node.args[:2]
    assert isinstance(table, fx.Node)
    assert isinstance(index, fx.Node)
    return {table: None, index: rows} if rows.dim < len(graph.shape(index)) else None


def outer_rows(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """The rows of a product of all pairs."""
    first, second = node.args[:2]
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    if graph.states[second] is not None and graph.states[first] is not None:
        graph.fail(node, "pairs positions with positions")
    own = graph.rows(first)
    other = graph.rows(second)
    return own if own is not None else (None if other is None else other.at(1))


def outer_demands(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of one factor; the other is whole."""
    first, second = node.args[:2]
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    if first is second:
        return None
    return {first: rows if rows.dim == 0 else None, second: rows.at(0) if rows.dim == 1 else None}


def broadcast_rows(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """The rows of operands that have one shape already."""
    found = {r.plain for n in _tensors(node) if (r := graph.rows(n))}
    is_equal = len({graph.shape(n) for n in _tensors(node)}) == 1
    return found.pop() if is_equal and len(found) == 1 else None


def broadcast_demands(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The same rows of each operand."""
    return dict.fromkeys(_tensors(node), rows)


def _tensors(node: fx.Node) -> list[fx.Node]:
    return list(node.all_input_nodes)


def _aligned(graph: ContextBuilder, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows:
    if not graph.is_tensor(node):
        return rows
    return rows.at(rows.dim + len(graph.shape(node)) - len(graph.shape(operand)))
