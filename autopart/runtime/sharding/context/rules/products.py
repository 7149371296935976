"""Products on a rank's positions. A product is a sum over letters, as in the tensor rules.

The positions have one letter.

- *It stands in the output.* The rank's rows need the rank's rows of the operands with this letter, and the whole of the
  others. Where another operand has positions under another letter (keys and values in written-out attention), this
  operand is gathered.
- *It is summed over.* The sum over all positions is the sum over the ranks of the sums over their own.

In a product with one matrix per expert, a rank's tokens lie in a pool. Its own counts say where each expert's rows end.
"""

import torch
from torch import fx

from autopart.runtime.sharding.collectives import reduce
from autopart.runtime.sharding.context.builder import ContextBuilder, is_counts
from autopart.runtime.sharding.context.states import Rows
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.contractions import (
    Product,
    product_arguments,
    product_of,
    unbiased,
)

aten = torch.ops.aten


def cut_product(graph: ContextBuilder, node: fx.Node) -> None:
    """Multiply on the rank's positions; the module's text says why the result is exact."""
    product = product_of(graph, node)
    if product is None:
        graph.fail(node, "has arguments that no rule knows")
    at = [i for i, n in enumerate(product.operands) if graph.rows(n) is not None]
    if not at:
        graph.fail(node, "reads the positions of single ranks")
    first = graph.rows(product.operands[at[0]])
    assert first is not None
    letter = product.letters[at[0]][first.dim]
    local = [_operand(graph, node, product, i, letter, first) for i in range(len(product.operands))]
    offsets = _offsets(graph, node, product, first)
    if letter in product.output:
        rows = first.plain.at(product.output.index(letter))
        bias = product.bias
        if bias is not None:
            is_along = rows.dim == len(product.output) - 1
            local.append(graph.formed(bias, node, rows.at(0) if is_along else None))
        graph.put(
            node, rows, node.target, product_arguments(node, [*local, *offsets]), **node.kwargs
        )
        return
    target, args = unbiased(node, local)
    if product.bias is None:
        graph.put_sum(node, target, args)
        return
    own = graph.emit(node, target, *args)
    total = graph.emit(node, reduce, own, graph.group)
    graph.put(node, None, aten.add.Tensor, (total, graph.whole(product.bias, node)))


def _operand(
    graph: ContextBuilder, node: fx.Node, product: Product, place: int, letter: str, first: Rows
) -> fx.Node:
    operand, letters = product.operands[place], product.letters[place]
    want = first.plain.at(letters.index(letter)) if letter in letters else None
    own = graph.rows(operand)
    if own is not None and (want is None or own.plain != want):
        if letter not in product.output or operation_name(node) not in ("matmul", "bmm", "einsum"):
            graph.fail(node, f"mixes the positions of '{operand.name}'")
        return graph.gathered([operand], node)[0]
    return graph.formed(operand, node, want)


def _offsets(graph: ContextBuilder, node: fx.Node, product: Product, rows: Rows) -> list[fx.Node]:
    if product.offsets is None:
        return []
    if not is_counts(graph.states[product.offsets]) or rows.dim != 0:
        graph.fail(node, "has experts whose rows are not those of a rank's tokens")
    return [graph.local(product.offsets)]
