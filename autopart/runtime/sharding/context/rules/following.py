"""Rules that go both ways: from an operand's positions to the result's, and back.

Back: where all readers of a whole value want the same positions of it, the rank computes these only. So position
numbers, position embeddings, rotary tables and the rows of masks follow the split.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import fx

from autopart.runtime.sharding.collectives import copy, own_part, own_rows, reduce, take
from autopart.runtime.sharding.context.arguments import arguments, writes
from autopart.runtime.sharding.context.builder import ContextBuilder, is_random
from autopart.runtime.sharding.context.exchange import own_positions
from autopart.runtime.sharding.context.rules import elements, shapes
from autopart.runtime.sharding.context.rules.samples import fewer_samples, more_samples
from autopart.runtime.sharding.context.states import EXPERT, Rows
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.own_draws import own_draws
from autopart.runtime.sharding.rules.pointwise import is_pointwise

Demands = Mapping[fx.Node, Rows | None]
Forth = Callable[[ContextBuilder, fx.Node], Rows | None]
Back = Callable[[ContextBuilder, fx.Node, Rows], Demands | None]
Put = Callable[[ContextBuilder, fx.Node, Rows, Demands], object]


class Following(NamedTuple):
    """A rule that goes both ways."""

    forth: Forth
    """The rows of the result; None where the operation mixes positions."""
    back: Back
    """The rows that each input must have; None where whole inputs are needed."""
    put: Put = ContextBuilder.put_on_rows


_VIEW = Following(shapes.view_forth, shapes.view_back, shapes.put_view)
_ELEMENT = Following(elements.element_rows, elements.element_demands)
_ROW = Following(elements.row_wise, elements.row_wise_demands)
_PERMUTE = Following(shapes.permute_forth, shapes.permute_back)
_DIVISION = Following(shapes.division_forth, shapes.division_back)
_SLICE = Following(shapes.slice_forth, shapes.slice_back, shapes.put_slice)
_JOIN = Following(shapes.join_forth, shapes.join_back)

_BY_NAME: dict[str, Following] = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"), _VIEW
    ),
    "expand": Following(shapes.expand_forth, shapes.expand_back, shapes.put_expand),
    **dict.fromkeys(("transpose", "permute", "t", "movedim"), _PERMUTE),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind"), _DIVISION),
    **dict.fromkeys(("slice", "select"), _SLICE),
    "getitem": Following(shapes.element_forth, shapes.element_back),
    **dict.fromkeys(("cat", "stack"), _JOIN),
    "embedding": Following(elements.embedding_rows, elements.embedding_demands),
    "broadcast_tensors": Following(elements.broadcast_rows, elements.broadcast_demands),
    "outer": Following(elements.outer_rows, elements.outer_demands),
    **dict.fromkeys(
        (
            "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "topk", "sort", "argsort",
            "argmax", "argmin", "cumsum", "cumprod", "gather", "scatter", "scatter_", "scatter_add",
            "scatter_add_", "layer_norm", "rms_norm", "amax", "amin", "max", "min", "logsumexp", "var", "std",
            "any", "all", "prod", "norm", "linalg_vector_norm", "count_nonzero", "glu", "flip",
            "repeat_interleave", "roll",
        ),
        _ROW,
    ),
}  # fmt: skip


def following(node: fx.Node) -> Following | None:
    """Return the rule of an operation that goes both ways; None for others."""
    if node.op != "call_function":
        return None
    if node.target in (copy, reduce, own_rows, own_draws):
        return _ELEMENT
    if node.target in (own_part, take):
        return _OWN_PART
    if node.target is own_positions and node.args[-1] == EXPERT:
        return _OWN_SAMPLES
    if node.target in _LIKE:
        return _CREATION
    name = operation_name(node)
    if name in _BY_NAME:
        return _BY_NAME[name]
    return _ELEMENT if is_pointwise(node) or name in _MORE else None


_MORE = frozenset(
    {
        "zeros_like", "ones_like", "full_like", "empty_like", "floor_divide", "copy_", "__and__", "__or__",
    }
)  # fmt: skip


def _created_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    return None


def _created_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    return {}


def _put_created(graph: ContextBuilder, node: fx.Node, rows: Rows, demands: Demands) -> None:
    sizes = list(arguments(node)["size"])
    sizes[rows.dim] //= graph.degree
    graph.put(node, rows, node.target, (sizes, *node.args[1:]), **node.kwargs)


aten = torch.ops.aten
_LIKE = (aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format)
_CREATION = Following(_created_forth, _created_back, _put_created)


def _part_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """A slice of the rank's positions, for one rank of a tensor group; or of another dimension."""
    x, dim, parts, ranks = node.args[:4]
    assert isinstance(x, fx.Node)
    assert isinstance(ranks, int)
    rows = graph.rows(x)
    if rows is None or dim != rows.dim:
        return rows
    return None if parts or rows.outer > 1 else Rows(rows.dim, rows.size, slices=ranks)


def _part_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    x, dim, parts, ranks = node.args[:4]
    assert isinstance(x, fx.Node)
    if dim != rows.dim:
        return {x: rows}
    fits = rows.slices == ranks and not parts and rows.outer == 1
    return {x: Rows(rows.dim, rows.size)} if fits else None


_OWN_PART = Following(_part_forth, _part_back)


def _samples_forth(graph: ContextBuilder, node: fx.Node) -> Rows | None:
    """The positions of an expert rank's own samples."""
    x, dim, outer, degree, _ = node.args
    assert isinstance(x, fx.Node)
    rows = graph.rows(x)
    return None if rows is None else fewer_samples(rows, dim, outer, degree)  # pyright: ignore[reportArgumentType]


def _samples_back(graph: ContextBuilder, node: fx.Node, rows: Rows) -> Demands | None:
    x, dim, outer, degree, _ = node.args
    assert isinstance(x, fx.Node)
    before = more_samples(rows, dim, outer, degree)  # pyright: ignore[reportArgumentType]
    return None if before is None else {x: before}


_OWN_SAMPLES = Following(_samples_forth, _samples_back)


def choose(attempt: ContextBuilder) -> dict[str, Rows]:
    """Return the whole nodes of which each rank needs its positions only, from an attempt's reads.

    Readers stand behind what they read. So one pass from the end sees all readers of a node before it.
    """
    chosen: dict[fx.Node, Rows] = {}
    wanted: dict[fx.Node, list[Rows | None]] = {}
    ordered = {name for pair in attempt.captured.after.items() for name in (pair[0], *pair[1])}
    for node in reversed(attempt.captured.module.graph.nodes):
        if attempt.states.get(node, node) is not None:
            # A node that is cut already tells its whole inputs what it wants.
            _note(attempt, node, wanted, None)
            continue
        wants = wanted.get(node, [])
        rule = following(node)
        is_one = wants and wants[0] is not None and all(want == wants[0] for want in wants)
        is_free = node.name not in ordered or elements.viewed_tensor(node).target in _LIKE
        if is_one and rule is not None and is_free and not writes(node) and not is_random(node):
            rows = wants[0]
            assert rows is not None
            demands = rule.back(attempt, node, rows.plain)
            if demands is not None:
                chosen[node] = rows.plain
                _note(attempt, node, wanted, demands)
                continue
        _note(attempt, node, wanted, dict.fromkeys(node.all_input_nodes))
    return {node.name: rows for node, rows in chosen.items()}


def _note(
    attempt: ContextBuilder,
    node: fx.Node,
    wanted: dict[fx.Node, list[Rows | None]],
    demands: Demands | None,
) -> None:
    for operand in node.all_input_nodes:
        want = attempt.reads.get((operand, node)) if demands is None else demands.get(operand)
        wanted.setdefault(operand, []).append(want)
