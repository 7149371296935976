"""The rules of the context pass, keyed by operation. An operation without positions runs whole."""

from collections.abc import Callable

from torch import fx

from autopart.runtime.sharding.collectives import gather, scatter
from autopart.runtime.sharding.context.builder import ContextBuilder, is_counts
from autopart.runtime.sharding.context.rules import routing, sums
from autopart.runtime.sharding.context.rules.attention import cut_attention, is_attention
from autopart.runtime.sharding.context.rules.experts import cut_experts
from autopart.runtime.sharding.context.rules.following import following
from autopart.runtime.sharding.context.rules.products import cut_product
from autopart.runtime.sharding.context.rules.samples import cut_exchange
from autopart.runtime.sharding.context.states import CONTEXT, EXPERT, Rows
from autopart.runtime.sharding.nodes import operation_name, reads_batch
from autopart.runtime.sharding.rules.contractions import GROUPED

Rule = Callable[[ContextBuilder, fx.Node], None]

RULES: dict[str, Rule] = {
    **dict.fromkeys(("linear", "addmm", "mm", "matmul", "bmm", "einsum", *GROUPED), cut_product),
    **dict.fromkeys(("sum", "mean"), sums.cut_sum),
    **dict.fromkeys(sums.ELEMENT_LOSSES, sums.cut_element_loss),
    **dict.fromkeys(sums.CLASS_LOSSES, sums.cut_class_loss),
    **dict.fromkeys(routing.COUNTS, routing.cut_counts),
    "index": routing.cut_index,
    **dict.fromkeys(("index_put", "index_put_"), routing.cut_index_put),
    **dict.fromkeys(("index_add", "index_add_"), routing.cut_index_add),
}
"""Rules from operands to results only, by the operation's name without namespace and overload."""


def write(graph: ContextBuilder, node: fx.Node) -> None:
    """Write the local counterpart of a node, whatever it is. Raises ContextRefused."""
    if node.op == "get_attr" and str(node.target) in graph.experts:
        experts = Rows(0, graph.experts[str(node.target)], kind="experts")
        graph.put_copied(node, experts, graph.local)
    elif node.op in ("placeholder", "get_attr"):
        graph.put_copied(node, None, graph.local)
        _cut_input(graph, node)
    elif node.name in graph.chosen:
        rows, rule = graph.chosen[node.name], following(node)
        demands = None if rule is None else rule.back(graph, node, rows)
        assert rule is not None and demands is not None
        rule.put(graph, node, rows, demands)
    elif node.op == "output":
        graph.put_copied(node, None, lambda n: graph.whole(n, node))
    elif not graph.cut_inputs(node):
        _write_uncut(graph, node)
    else:
        _write_cut(graph, node)


def _cut_input(graph: ContextBuilder, node: fx.Node) -> None:
    """Cut an input of embeddings (batch, sequence, width) along its sequence, or any numbers along the batch."""
    value = node.meta.get("val") if node.op == "placeholder" else None
    if value is None or not value.is_floating_point():
        return
    if graph.group == EXPERT and value.dim() > 1:
        graph.put_root(node, graph.root(value.shape[0], 0, f"input '{node.name}'"))
    elif graph.group == CONTEXT and value.dim() == 3:
        graph.put_root(node, graph.root(value.shape[1], 1, f"input '{node.name}'"))


def _write_uncut(graph: ContextBuilder, node: fx.Node) -> None:
    """Write a whole operation. An embedding of tokens (batch, sequence) from the batch starts a sequence."""
    index = node.args[1] if operation_name(node) == "embedding" else None
    is_root = isinstance(index, fx.Node) and len(graph.shape(index)) == 2 and reads_batch(index)
    if not is_root:
        graph.put_whole(node)
        return
    table = node.args[0]
    assert isinstance(index, fx.Node) and isinstance(table, fx.Node)
    dim = int(graph.group == CONTEXT)
    size = graph.shape(index)[dim]
    rows = graph.root(size, dim, f"'{index.name}', which '{node.name}' looks up,")
    graph.put_on_rows(node, rows, {table: None, index: rows})


def _write_cut(graph: ContextBuilder, node: fx.Node) -> None:
    name = operation_name(node)
    if graph.group == EXPERT and cut_experts(graph, node):
        return
    if graph.group == CONTEXT and cut_exchange(graph, node):
        return
    if any(is_counts(graph.states[n]) for n in node.all_input_nodes) and name not in GROUPED:
        if not routing.cut_of_counts(graph, node):
            write(graph, node)
    elif is_attention(node):
        cut_attention(graph, node)
    elif name in ("sort", "argsort") and routing.cut_sort(graph, node):
        return
    elif node.target is scatter:
        _cut_scatter(graph, node)
    elif node.target is gather:
        _cut_gather(graph, node)
    elif name in RULES:
        RULES[name](graph, node)
    else:
        _write_following(graph, node, name)


def _write_following(graph: ContextBuilder, node: fx.Node, name: str) -> None:
    rule = following(node)
    if rule is None:
        graph.fail(node, "has no rule")
    source = node.args[0] if node.args else None
    if name == "getitem" and isinstance(source, fx.Node) and source in graph.elements:
        place = node.args[1]
        assert isinstance(place, int)
        graph.put_copied(node, graph.elements[source][place], graph.local)
        return
    rows = rule.forth(graph, node)
    demands = None if rows is None else rule.back(graph, node, rows)
    if rows is None or demands is None:
        graph.fail(node, "mixes positions")
    rule.put(graph, node, rows, demands)


def _cut_scatter(graph: ContextBuilder, node: fx.Node) -> None:
    """Leave each tensor rank a slice of the context rank's chunks."""
    x, dim, ranks = node.args[:3]
    assert isinstance(x, fx.Node) and isinstance(ranks, int)
    rows = graph.rows(x)
    if rows is not None and graph.group == EXPERT and dim != rows.dim:
        graph.put_copied(node, rows, graph.local)
        return
    is_sequence = rows is not None and dim == rows.dim and rows == Rows(rows.dim, rows.size)
    if rows is None or not is_sequence or rows.size % (graph.degree * ranks):
        graph.fail(node, "slices another dimension than the sequence")
    graph.put_copied(node, Rows(rows.dim, rows.size, slices=ranks), graph.local)


def _cut_gather(graph: ContextBuilder, node: fx.Node) -> None:
    """Put the tensor ranks' slices of the context rank's chunks together."""
    x, dim, _, ranks = node.args[:4]
    assert isinstance(x, fx.Node)
    rows = graph.rows(x)
    if rows is not None and graph.group == EXPERT and dim != rows.dim:
        graph.put_copied(node, rows, graph.local)
        return
    if rows is None or dim != rows.dim or rows.slices != ranks:
        graph.fail(node, "gathers another dimension than the sequence")
    graph.put_copied(node, Rows(rows.dim, rows.size), graph.local)
