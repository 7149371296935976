"""Exchanges of expert ranks, in the context pass over an expert rank's local graph.

Expert ranks exchange whole samples, or entries of tokens. Ranks with one context rank exchange with each other, so each
message has their positions alone.

- *Samples.* Taking, gathering and scattering samples moves no position. In a merged dimension the samples stand outside the
  positions: e times as many before samples are taken, or behind a gather.
- *Entries.* A context rank sorts the entries of its own tokens. It sends them to the experts' ranks, and gets their results back.
  An entry meets its expert's matrix only, so it does not matter in which message it came.

All these are linear, and their own transposes are the backward.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from torch import fx

from autopart.runtime.sharding.collectives import scatter
from autopart.runtime.sharding.context.builder import ContextBuilder, is_counts
from autopart.runtime.sharding.context.draws import draw_positions, draw_positions_of_slices
from autopart.runtime.sharding.context.exchange import gather_positions
from autopart.runtime.sharding.context.expert_exchange import (
    from_experts,
    gather_counts,
    own_ends,
    to_experts,
)
from autopart.runtime.sharding.context.states import EXPERT, OwnCounts, Rows


def cut_exchange(graph: ContextBuilder, node: fx.Node) -> bool:
    """Write an exchange of expert ranks. Returns False for other work."""
    if node.target in (draw_positions, draw_positions_of_slices):
        graph.fail(node, "draws random numbers for the samples of an expert rank")
    rule = _RULES.get(node.target)
    if rule is None or node.args[-1] != EXPERT:
        return False
    rule(graph, node)
    return True


def fewer_samples(rows: Rows, dim: int, outer: int, degree: int) -> Rows | None:
    """Return where positions stand once a rank's samples are taken along `dim`; None where samples stand inside them.

    The dimension has `outer` elements outside the samples.
    """
    if dim != rows.dim:
        return rows
    is_inside = rows.outer % (outer * degree) == 0
    return replace(rows, outer=rows.outer // degree) if is_inside else None


def more_samples(rows: Rows, dim: int, outer: int, degree: int) -> Rows | None:
    """Return where positions stood before `fewer_samples`, or stand once samples are gathered."""
    if dim != rows.dim:
        return rows
    return replace(rows, outer=rows.outer * degree) if rows.outer % outer == 0 else None


def _gather(graph: ContextBuilder, node: fx.Node) -> None:
    sources, dims, outers, degree = node.args[:4]
    assert isinstance(sources, list | tuple) and isinstance(dims, list | tuple)
    assert isinstance(outers, list | tuple) and isinstance(degree, int)
    states: dict[fx.Node, Rows | None] = {}
    for source, dim, outer in zip(sources, dims, outers, strict=True):
        assert isinstance(source, fx.Node) and isinstance(dim, int) and isinstance(outer, int)
        rows = graph.rows(source)
        states[source] = None if rows is None else more_samples(rows, dim, outer, degree)
        if rows is not None and states[source] is None:
            _fail(graph, node)
    first = next(one for one in states.values() if one is not None)
    graph.put_copied(node, first, lambda n: graph.formed(n, node, graph.rows(n)))
    graph.elements[node] = tuple(states.values())


def _scatter(graph: ContextBuilder, node: fx.Node) -> None:
    x, dim, degree = node.args[:3]
    assert isinstance(x, fx.Node) and isinstance(dim, int) and isinstance(degree, int)
    rows = graph.rows(x)
    state = None if rows is None else fewer_samples(rows, dim, 1, degree)
    if state is None:
        _fail(graph, node)
    graph.put_copied(node, state, graph.local)


def _counts(graph: ContextBuilder, node: fx.Node) -> None:
    if not all(is_counts(graph.states[n]) for n in node.all_input_nodes):
        _fail(graph, node)
    graph.put_copied(node, OwnCounts(), graph.local)
    if node.target is own_ends:
        counts, entries, *rest = graph.local(node).args
        assert isinstance(entries, int)
        graph.local(node).args = (counts, entries // graph.degree, *rest)


def _move(graph: ContextBuilder, node: fx.Node) -> None:
    x, counts = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(counts, fx.Node)
    rows = graph.rows(x)
    if rows is None or rows.kind != "pool" or rows.dim or not is_counts(graph.states[counts]):
        _fail(graph, node)
    graph.put_copied(node, rows.plain, graph.local)


def _fail(graph: ContextBuilder, node: fx.Node) -> NoReturn:
    graph.fail(node, "exchanges samples that stand inside the positions")


_RULES: dict[object, Callable[[ContextBuilder, fx.Node], None]] = {
    gather_positions: _gather,
    scatter: _scatter,
    gather_counts: _counts,
    own_ends: _counts,
    to_experts: _move,
    from_experts: _move,
}
