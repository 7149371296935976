"""Operations that move or divide dimensions, on a rank's positions.

They change places, never numbers. The rank's positions of the operand give the rank's positions of the result, as
long as the result has a dimension that runs over the positions (`states.viewed`). Each function says which rows an
operand must have for rows of the result (`back`), and which rows the result has (`forth`).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from autopart.runtime.sharding.context.arguments import arguments, dimension
from autopart.runtime.sharding.context.builder import ContextBuilder
from autopart.runtime.sharding.context.states import Rows, viewed
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.shapes import permuted

aten = torch.ops.aten
Demands = Mapping[fx.Node, Rows | None]


def _operand(node: fx.Node) -> fx.Node:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return x


def view_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """A view of cut rows."""
    x = _operand(node)
    rows = graph.rows(x)
    return None if rows is None else viewed(rows, graph.shape(x), graph.shape(node))


def view_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows before a view."""
    x = _operand(node)
    before = viewed(rows, graph.shape(node), graph.shape(x))
    return None if before is None else {x: before}


def put_view(graph: ContextBuilder, node: fx.Node, rows: Rows, demands: Demands) -> None:
    """Give a view its local sizes."""
    x = _operand(node)
    sizes = list(graph.shape(node))
    sizes[rows.dim] //= graph.degree
    graph.put(node, rows, aten.reshape.default, (graph.formed(x, node, demands[x]), sizes))


def expand_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """Repeat cut rows along other dimensions."""
    x = _operand(node)
    rows = graph.rows(x)
    return None if rows is None else rows.at(rows.dim + _more(graph, node, x))


def expand_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The operand's rows; whole where the positions are repetitions."""
    x = _operand(node)
    dim = rows.dim - _more(graph, node, x)
    is_repeated = dim < 0 or graph.shape(x)[dim] != graph.shape(node)[rows.dim]
    return {x: None if is_repeated else rows.at(dim)}


def put_expand(graph: ContextBuilder, node: fx.Node, rows: Rows, demands: Demands) -> None:
    """Give an expansion its local sizes."""
    x = _operand(node)
    sizes = list(graph.shape(node))
    sizes[rows.dim] //= graph.degree
    graph.put(node, rows, aten.expand.default, (graph.formed(x, node, demands[x]), sizes))


def permute_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """Move the positions with their dimension."""
    x = _operand(node)
    rows = graph.rows(x)
    order = permuted(node, len(graph.shape(x)))
    return None if rows is None else rows.at(order.index(rows.dim))


def permute_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows before a permutation."""
    x = _operand(node)
    return {x: rows.at(permuted(node, len(graph.shape(x)))[rows.dim])}


def division_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """Divide another dimension than the positions'."""
    x = _operand(node)
    rows = graph.rows(x)
    dim = _along(graph, node, x)
    if rows is None or dim == rows.dim:
        return None
    return rows.at(rows.dim - (_drops(node) and dim < rows.dim))


def division_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of what is divided."""
    x = _operand(node)
    dim = _along(graph, node, x)
    before = rows.dim + (_drops(node) and dim <= rows.dim)
    return None if before == dim else {x: rows.at(before)}


def slice_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """A range of another dimension, or all positions."""
    x = _operand(node)
    rows = graph.rows(x)
    if rows is not None and operation_name(node) == "slice" and _is_all(graph, node, x):
        return rows
    return division_forth(graph, node)


def slice_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of what a range is taken of."""
    x = _operand(node)
    is_all = operation_name(node) == "slice" and _is_all(graph, node, x)
    return {x: rows} if is_all else division_back(graph, node, rows)


def put_slice(graph: ContextBuilder, node: fx.Node, rows: Rows, demands: Demands) -> None:
    """Take the range on the rank's positions."""
    x = _operand(node)
    if operation_name(node) == "slice" and _is_all(graph, node, x):
        graph.put(node, rows, aten.alias.default, (graph.formed(x, node, demands[x]),))
    else:
        graph.put_on_rows(node, rows, demands)


def element_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """One of several results."""
    return graph.rows(_operand(node))


def element_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of all results."""
    return {_operand(node): rows}


def join_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """Join along another dimension than the positions'."""
    pieces, dim, stacks = _joined(graph, node)
    found = {r for n in pieces if (r := graph.rows(n)) is not None}
    if len(found) != 1:
        return None
    rows = found.pop()
    if rows.dim == dim and not stacks:
        return None
    return rows.at(rows.dim + (stacks and dim <= rows.dim))


def join_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    """The rows of each piece."""
    pieces, dim, stacks = _joined(graph, node)
    if rows.dim == dim:
        return None
    before = rows.at(rows.dim - (stacks and dim < rows.dim))
    return dict.fromkeys(pieces, before)


def _joined(graph: ContextBuilder, node: fx.Node) -> tuple[list[fx.Node], int, bool]:
    pieces = node.args[0]
    assert isinstance(pieces, list | tuple)
    nodes = [piece for piece in pieces if isinstance(piece, fx.Node)]
    dim = dimension(arguments(node).get("dim", 0), len(graph.shape(node)))
    return nodes, dim, operation_name(node) == "stack"


def _more(graph: ContextBuilder, node: fx.Node, x: fx.Node) -> int:
    return len(graph.shape(node)) - len(graph.shape(x))


def _along(graph: ContextBuilder, node: fx.Node, x: fx.Node) -> int:
    given: Any = arguments(node).get("dim", 0)
    return dimension(given, len(graph.shape(x)))


def _drops(node: fx.Node) -> bool:
    return operation_name(node) in ("unbind", "select")


def _is_all(graph: ContextBuilder, node: fx.Node, x: fx.Node) -> bool:
    return math.prod(graph.shape(node)) == math.prod(graph.shape(x))
