"""The vocabulary: token embedding and cross-entropy over sharded rows.

Source: Shoeybi et al., Megatron-LM (2019).
"""

# pyright: reportPrivateUsage=false

import torch
from torch import fx

from autopart.runtime.sharding.collectives import own_rows
from autopart.runtime.sharding.cross_entropy import MEAN, sharded_cross_entropy
from autopart.runtime.sharding.local_graph import GROUP, LocalGraph
from autopart.runtime.sharding.nodes import kept_by_plan, operation_name, reads_batch
from autopart.runtime.sharding.states import REPLICATED, sharded

aten = torch.ops.aten

LEAST_ROWS = 16
"""Rows per rank below which a table stays whole: an all-reduce costs more than it saves."""


def shard_embedding(graph: LocalGraph, node: fx.Node) -> None:
    """Look up the rows that the rank has, and zeros for all others.

    Each row is on exactly one rank, so the sum over the ranks is the looked-up row. The mask lets no
    gradient into the row that stands in for another rank's.
    """
    table, index = node.args[:2]
    assert isinstance(table, fx.Node)
    assert isinstance(index, fx.Node)
    for operand in node.all_input_nodes:
        graph.settle(operand)
    reason = _stays_whole(graph, node, table, index)
    if reason is not None:
        if graph.inputs(node, "sharded"):
            graph.fail(node, reason)
        graph.put_whole(node, reason)
        return
    graph.add_seed(node)
    local = graph.shard_parameter(table, node, sharded(0))
    rows = graph.shape(table)[0] // graph.degree
    own = graph.emit(node, own_rows, graph.whole(index, node), rows, GROUP)
    inside = graph.emit(
        node,
        aten.logical_and.default,
        graph.emit(node, aten.ge.Scalar, own, 0),
        graph.emit(node, aten.lt.Scalar, own, rows),
    )
    outside = graph.emit(node, aten.unsqueeze.default, inside, -1)
    outside = graph.emit(node, aten.logical_not.default, outside)
    clamped = graph.emit(node, aten.clamp.default, own, 0, rows - 1)
    found = graph.emit(node, aten.embedding.default, local, clamped)
    graph.put_partial(node, aten.masked_fill.Scalar, (found, outside, 0.0))


def _stays_whole(graph: LocalGraph, node: fx.Node, table: fx.Node, index: fx.Node) -> str | None:
    if graph.is_refused(node) or graph.inputs(node, "sharded"):
        return "its index or its table is sharded otherwise"
    if not graph.is_parameter(table):
        return "its table is no parameter"
    rows, style = graph.shape(table)[0], graph.style(table)
    if style == "replicate":
        return kept_by_plan(str(table.target))
    if style == "colwise":
        return f"tp_plan asks for columns of '{table.target}', and tables are sharded by rows"
    is_asked = style == "rowwise"
    if rows % graph.degree or (rows < LEAST_ROWS * graph.degree and not is_asked):
        return f"'{table.target}' has {rows} rows, not a multiple of {graph.degree} that is large"
    if not is_asked and not reads_batch(index):
        return "a table of positions is small and the same for all microbatches"
    padding = node.args[2] if len(node.args) > 2 else node.kwargs.get("padding_idx", -1)
    return None if padding == -1 else "its padding row has no gradient"


def shard_cross_entropy(graph: LocalGraph, node: fx.Node) -> None:
    """Compute the loss over sharded logits; `sharded_cross_entropy` has the formulas.

    Every rank gets the whole loss. Its gradient for a logit needs the softmax there, which each rank
    has for its own logits.
    """
    for operand in node.all_input_nodes:
        graph.settle(operand)
    logits, target = node.args[:2]
    assert isinstance(logits, fx.Node)
    assert isinstance(target, fx.Node)
    assert isinstance(node.target, torch._ops.OpOverload)
    given = {
        argument.name: node.args[place] if place < len(node.args) else argument.default_value
        for place, argument in enumerate(node.target._schema.arguments)
    } | node.kwargs
    if graph.states[logits].kind != "sharded":
        graph.put_whole(node)
        return
    is_plain = (
        graph.states[logits] == sharded(1)
        and len(graph.shape(logits)) == 2
        and len(graph.shape(target)) == 1
        and given["weight"] is None
        and not given["label_smoothing"]
    )
    if not is_plain:
        graph.fail(node, f"{operation_name(node)} with weights, smoothing or more dimensions")
    args = (
        graph.local(logits),
        graph.whole(target, node),
        given.get("reduction", MEAN),
        given.get("ignore_index", -100),
        GROUP,
    )
    graph.put(node, REPLICATED, sharded_cross_entropy, args)
