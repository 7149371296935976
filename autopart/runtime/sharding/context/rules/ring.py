"""Which attention passes keys and values around a ring, and which must gather them."""

import math
from typing import Any

import torch
from torch import fx

from autopart.runtime.sharding.context.builder import ContextBuilder
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.context.states import Rows
from autopart.runtime.sharding.nodes import operation_name

Chain = list[fx.Node]
"""A tensor, and the operations that repeat its heads one after the other."""


def put_ring(
    graph: ContextBuilder,
    node: fx.Node,
    rows: Rows,
    given: dict[str, Any],
    chains: tuple[Chain, Chain],
) -> bool:
    """Write attention with a ring, where this can be. `chains` lead from keys and values to the node's operands."""
    query, key, value = (given[name] for name in ("query", "key", "value"))
    reason = _why_not(graph, query, value, given)
    longer = [_from_heads(graph, node, chain) for chain in chains]
    before = [chain[0] for chain in longer]
    if all(_repeats_heads(graph, chain) for chain in longer) and _are_alike(graph, *before):
        # The kernels repeat heads by themselves.
        key, value = before
    if reason is None and not all(_is_block(graph, x) for x in (key, value)):
        reason = "has keys and values along other positions"
    if reason is None and not (_are_alike(graph, key, value) and _fit(graph, query, key)):
        reason = "has queries, keys and values of several shapes"
    if reason is not None:
        graph.gathering[graph.described(node)] = reason
        return False
    blocks = [graph.local(x) for x in (key, value)]
    options = (bool(given["is_causal"]), given["scale"], graph.degree, graph.group)
    graph.put(node, rows, ring_attention, (graph.own(query, node, rows), *blocks, *options))
    return True


def _why_not(
    graph: ContextBuilder, query: fx.Node, value: fx.Node, given: dict[str, Any]
) -> str | None:
    """Say why attention cannot have a ring; None where it can."""
    if given["attn_mask"] is not None:
        return "has a mask of its own"
    if given["dropout_p"]:
        return "has dropout"
    if len(graph.shape(query)) != 4:
        return "has no dimension of heads"
    if graph.shape(query)[-1] != graph.shape(value)[-1]:
        return "has queries and values of two widths"
    example = query.meta["val"]
    if example.device.type == "cuda" and example.dtype not in (torch.float16, torch.bfloat16):
        return f"is in {str(example.dtype).removeprefix('torch.')}, for which a GPU has no flash kernel"
    return None


def _is_block(graph: ContextBuilder, node: fx.Node) -> bool:
    """Whether a value has the rank's chunks of one sequence along its last but one dimension."""
    rows, shape = graph.rows(node), graph.shape(node)
    return rows is not None and rows == Rows(len(shape) - 2, shape[-2])


def _are_alike(graph: ContextBuilder, key: fx.Node, value: fx.Node) -> bool:
    return graph.shape(key) == graph.shape(value)


def _fit(graph: ContextBuilder, query: fx.Node, key: fx.Node) -> bool:
    """Whether each head of keys has equally many of queries, for equal samples."""
    (samples, heads, *_), (others, shared, *_) = graph.shape(query), graph.shape(key)
    return samples == others and heads % shared == 0


def _from_heads(graph: ContextBuilder, node: fx.Node, chain: Chain) -> Chain:
    """Return a chain from the heads on, before a dimension for their repetitions was added."""
    found = list(chain)
    while (
        len(graph.shape(found[0])) > 4
        and operation_name(found[0]) in ("unsqueeze", "slice")
        and graph.layer(found[0]) == graph.layer(node)
    ):
        source = found[0].args[0]
        assert isinstance(source, fx.Node)
        found.insert(0, source)
    return found


def _repeats_heads(graph: ContextBuilder, chain: Chain) -> bool:
    """Whether a chain repeats each head of (samples, heads, positions, width) as often in a row, and no more.

    Repeated heads stand in a row where a dimension of 1 behind the heads is expanded and then joined with them.
    """
    first, shapes = graph.shape(chain[0]), [tuple(graph.shape(one)) for one in chain]
    if len(first) != 4:
        return False
    samples, heads, *rest = first
    times = math.prod(shapes[-1]) // math.prod(first)
    between = {(samples, heads, n, *rest) for n in (1, times)}
    allowed = {tuple(first), (samples, heads * times, *rest), *between}
    names = [operation_name(one) for one in chain[1:]]
    if "repeat_interleave" in names:
        repeats = [one for one in chain[1:] if operation_name(one) == "repeat_interleave"]
        return len(names) == 1 and repeats[0].args[2:3] == (1,) and shapes[-1] in allowed
    is_marked = len(shapes[-1]) == len(first) and (
        set(shapes) == {tuple(first)} or (samples, heads, 1, *rest) in shapes
    )
    return is_marked and set(shapes) <= allowed
