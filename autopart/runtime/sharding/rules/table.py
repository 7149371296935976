"""The rules, keyed by operation. An operation that is missing here runs whole."""

from collections.abc import Callable

from torch import fx

from autopart.runtime.sharding.local_graph import LocalGraph
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.attention import shard_attention
from autopart.runtime.sharding.rules.contractions import GROUPED, shard_product
from autopart.runtime.sharding.rules.pointwise import is_pointwise, shard_norm, shard_pointwise
from autopart.runtime.sharding.rules.reductions import shard_softmax, shard_sum
from autopart.runtime.sharding.rules.shapes import (
    shard_concatenation,
    shard_division,
    shard_element,
    shard_expand,
    shard_permutation,
    shard_slice,
    shard_view,
)
from autopart.runtime.sharding.rules.vocabulary import shard_cross_entropy, shard_embedding
from autopart.runtime.sharding.states import REPLICATED

Rule = Callable[[LocalGraph, fx.Node], None]
"""Writes a node's local counterpart, or raises `Refused`."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(("linear", "addmm", "mm", "matmul", "bmm", "einsum", *GROUPED), shard_product),
    "scaled_dot_product_attention": shard_attention,
    "embedding": shard_embedding,
    "cross_entropy_loss": shard_cross_entropy,
    **dict.fromkeys(("layer_norm", "rms_norm"), shard_norm),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), shard_softmax),
    **dict.fromkeys(("sum", "mean"), shard_sum),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"),
        shard_view,
    ),
    "expand": shard_expand,
    **dict.fromkeys(("transpose", "permute", "t"), shard_permutation),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind"), shard_division),
    "getitem": shard_element,
    **dict.fromkeys(("slice", "select"), shard_slice),
    **dict.fromkeys(("cat", "stack"), shard_concatenation),
}
"""The rule for each operation, by its name without namespace and overload."""


def write(graph: LocalGraph, node: fx.Node) -> None:
    """Write the local counterpart of a node, whatever it is. Raises `Refused`."""
    if node.op in ("placeholder", "get_attr"):
        graph.put_copied(node, REPLICATED, graph.local)
    elif node.op == "output":
        graph.put_copied(node, REPLICATED, lambda n: graph.whole(n, node))
    elif rule := RULES.get(operation_name(node)):
        rule(graph, node)
    elif is_pointwise(node):
        shard_pointwise(graph, node)
    else:
        for operand in node.all_input_nodes:
            graph.settle(operand)
        if graph.inputs(node, "sharded"):
            graph.fail(node, f"there is no rule for {operation_name(node)}")
        graph.put_whole(node, f"there is no rule for {operation_name(node)}")
