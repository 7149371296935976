"""Products: linear layers, matrix products and einsums, all as sums over letters.

With index letters, every product is out[o] = sum over c of x[..] * w[..]. One letter may be sharded:

- *The letter stands in the output* (columns, batch, heads, experts). Each rank computes a slice of the
  output from slices of the operands that have the letter, and from whole operands that lack it. The
  slices together are the output, so nothing is exchanged. A whole operand gets a gradient from each
  rank's slice alone; their sum is its gradient (`copy`).
- *The letter is summed over* (rows). The sum over the letter is the sum over the ranks of the sums over
  their slices: the local result is partial. A bias must count once, so it is added after that sum.
"""

from typing import NamedTuple

import torch
from torch import fx

from autopart.runtime.sharding.captured_nodes import CapturedNodes
from autopart.runtime.sharding.local_graph import LocalGraph
from autopart.runtime.sharding.nodes import kept_by_plan, operation_name
from autopart.runtime.sharding.rules.shapes import permuted
from autopart.runtime.sharding.states import ShardState, sharded

aten = torch.ops.aten

GROUPED = ("_grouped_mm", "grouped_mm_fallback")
"""Products of rows with one matrix per expert: torch's own, and transformers' for a CPU."""


class Product(NamedTuple):
    """A product's operands, with a letter for each dimension; "" for one that is broadcast."""

    operands: tuple[fx.Node, ...]
    letters: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]
    bias: fx.Node | None = None
    """A vector over the output's last dimension."""
    offsets: fx.Node | None = None
    """Where each expert's rows end, in a product with one matrix per expert."""


def shard_product(graph: LocalGraph, node: fx.Node) -> None:
    """Shard the letter that an operand is sharded along, or else the weight's columns.

    The module's text says why the result is equal.
    """
    for operand in node.all_input_nodes:
        graph.settle(operand)
    product = product_of(graph, node)
    if product is None:
        if graph.inputs(node, "sharded"):
            graph.fail(node, f"{operation_name(node)} has arguments that no rule knows")
        graph.put_whole(node, f"{operation_name(node)} has arguments that no rule knows")
        return
    found = {
        (letters[state.dim], state.parts, state.copies)
        for operand, letters in zip(product.operands, product.letters, strict=True)
        if (state := graph.states[operand]).kind == "sharded"
    }
    if len(found) > 1:
        graph.fail(node, f"{operation_name(node)} has operands that are sharded differently")
    if found:
        _write(graph, node, product, *found.pop())
        return
    seed = _seed(graph, node, product)
    if seed is None:
        graph.put_whole(node, _reason(graph, product))
        return
    graph.add_seed(node)
    parts = graph.choices.parts.get(node.name, ())
    _write(graph, node, product, seed, parts, graph.choices.copies.get(node.name, 1))


def _seed(graph: LocalGraph, node: fx.Node, product: Product) -> str | None:
    """Return the letter of the only weight that is sharded though no operand is.

    It is a column: the output has it, and no other operand. Where the model's plan asks for rows, it
    is summed over, and each rank takes its slice of the other operand.
    """
    weights = [i for i, n in enumerate(product.operands) if graph.weight(n)]
    if len(weights) != 1 or graph.is_refused(node):
        return None
    weight = product.operands[weights[0]]
    style = graph.style(graph.weight(weight) or weight)
    copies = graph.choices.copies.get(node.name, 1)
    elsewhere = {c for i, own in enumerate(product.letters) if i != weights[0] for c in own}
    for letter, size in zip(product.letters[weights[0]], graph.shape(weight), strict=True):
        is_column = letter in product.output and letter not in elsewhere
        is_row = letter not in product.output and letter in elsewhere
        is_meant = is_row if style == "rowwise" else is_column and style != "replicate"
        if is_meant and size % (graph.degree // copies) == 0:
            return letter
    return None


def _reason(graph: LocalGraph, product: Product) -> str:
    weights = [w for n in product.operands if (w := graph.weight(n))]
    if len(weights) != 1:
        return "the product has no single weight"
    name, style = str(weights[0].target), graph.style(weights[0])
    if style == "replicate":
        return kept_by_plan(name)
    shape = "x".join(map(str, graph.shape(weights[0])))
    kind = "row" if style == "rowwise" else "column"
    return f"no {kind} dimension of '{name}' ({shape}) is a multiple of {graph.degree}"


def _shard_weight(graph: LocalGraph, weight: fx.Node, at: fx.Node, like: ShardState) -> fx.Node:
    """Shard a parameter, or the one behind moved dimensions, so that `weight` is sharded as `like`."""
    parameter = graph.weight(weight)
    if parameter is None or parameter is weight:
        return graph.shard_parameter(weight, at, like)
    dim = permuted(weight, len(graph.shape(parameter)))[like.dim]
    own = graph.shard_parameter(parameter, at, sharded(dim, like.parts, like.copies))
    return graph.emit(at, weight.target, own, *weight.args[1:])


def _write(
    graph: LocalGraph,
    node: fx.Node,
    product: Product,
    letter: str,
    parts: tuple[int, ...],
    copies: int,
) -> None:
    is_output = letter in product.output
    if product.offsets is not None and letter not in ("i", "o"):
        graph.fail(node, f"{operation_name(node)} whose rows or experts are sharded")
    if copies > 1 and not is_output:
        graph.fail(node, f"{operation_name(node)} sums over slices that several ranks hold")
    local: list[fx.Node] = []
    for operand, letters in zip(product.operands, product.letters, strict=True):
        if graph.states[operand].kind == "sharded":
            local.append(graph.local(operand))
        elif letter in letters:
            like = sharded(letters.index(letter), parts, copies)
            local.append(
                _shard_weight(graph, operand, node, like)
                if graph.weight(operand)
                else graph.slice_of(operand, node, like)
            )
        else:
            local.append(graph.whole(operand, node, for_sharded=True))
    bias = product.bias
    offsets = [] if product.offsets is None else [graph.whole(product.offsets, node)]
    if not is_output:
        target, args = unbiased(node, [*local, *offsets])
        graph.put_partial(node, target, args, () if bias is None else (bias,))
        return
    state = sharded(product.output.index(letter), parts, copies)
    if bias is not None:
        local.append(_local_bias(graph, node, bias, state))
    graph.put(node, state, node.target, product_arguments(node, [*local, *offsets]), **node.kwargs)


def _local_bias(graph: LocalGraph, node: fx.Node, bias: fx.Node, state: ShardState) -> fx.Node:
    if state.dim != len(graph.shape(node)) - 1:
        return graph.whole(bias, node, for_sharded=True)
    like = sharded(0, state.parts, state.copies)
    cut = graph.shard_parameter if graph.is_parameter(bias) else graph.slice_of
    return cut(bias, node, like)


def product_arguments(node: fx.Node, local: list[fx.Node]) -> tuple[object, ...]:
    """Return the operation's arguments with local operands, the bias last in `local`."""
    name = operation_name(node)
    if name == "einsum":
        return (node.args[0], local)
    return (local[2], local[0], local[1]) if name == "addmm" else tuple(local)


def unbiased(node: fx.Node, local: list[fx.Node]) -> tuple[object, tuple[object, ...]]:
    """Return the operation without its bias."""
    name = operation_name(node)
    if name == "einsum":
        return node.target, (node.args[0], local)
    return (aten.mm.default if name == "addmm" else node.target), tuple(local)


def product_of(graph: CapturedNodes, node: fx.Node) -> Product | None:
    """Return a product with its letters; None where it has arguments that no rule knows."""
    name = operation_name(node)
    if name in GROUPED:
        return _grouped(graph, node)
    if name == "einsum":
        return _einsum(node)
    if node.kwargs:
        return None
    if name == "linear":
        x, weight, *rest = node.args
        return _linear(graph, x, weight, rest[0] if rest else None, "oi")
    if name == "addmm":
        bias, x, weight = node.args
        assert isinstance(bias, fx.Node)
        return _linear(graph, x, weight, bias, "io") if len(graph.shape(bias)) == 1 else None
    x, y = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(y, fx.Node)
    return _matmul(graph, x, y)


def _grouped(graph: CapturedNodes, node: fx.Node) -> Product | None:
    """Each row times the matrix of its expert: a sum over the same letter for all experts."""
    if len(node.args) != 3 or node.kwargs:
        return None
    x, weight, offsets = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    if len(graph.shape(x)) != 2 or len(graph.shape(weight)) != 3:
        return None
    ends = offsets if isinstance(offsets, fx.Node) else None
    letters = (("m", "i"), ("e", "i", "o"))
    return None if ends is None else Product((x, weight), letters, ("m", "o"), offsets=ends)


def _linear(
    graph: CapturedNodes, x: object, weight: object, bias: object, letters: str
) -> Product | None:
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node):
        return None
    batch = tuple(f"b{d}" for d in range(len(graph.shape(x)) - 1))
    taken = bias if isinstance(bias, fx.Node) else None
    return Product((x, weight), ((*batch, "i"), tuple(letters)), (*batch, "o"), taken)


def _matmul(graph: CapturedNodes, x: fx.Node, y: fx.Node) -> Product | None:
    a, b = graph.shape(x), graph.shape(y)
    if len(a) < 2 or len(b) < 2:
        return None
    batch = max(len(a), len(b)) - 2
    whole = [1] * batch
    for shape in (a, b):
        for d, size in enumerate(shape[:-2]):
            place = d + batch - (len(shape) - 2)
            whole[place] = max(whole[place], size)

    def letters(shape: tuple[int, ...], last: tuple[str, str]) -> tuple[str, ...]:
        first = batch - (len(shape) - 2)
        own = [f"b{first + d}" if n == whole[first + d] else "" for d, n in enumerate(shape[:-2])]
        return (*own, *last)

    output = tuple(f"b{d}" for d in range(batch))
    return Product((x, y), (letters(a, ("m", "i")), letters(b, ("i", "o"))), (*output, "m", "o"))


def _einsum(node: fx.Node) -> Product | None:
    equation, operands = node.args[:2]
    text = str(equation).replace(" ", "")
    if "." in text or "->" not in text or len(node.args) > 2 or node.kwargs:
        return None
    left, _, output = text.partition("->")
    letters = tuple(tuple(one) for one in left.split(","))
    if any(len(set(one)) < len(one) for one in letters):
        return None
    assert isinstance(operands, list | tuple)
    return Product(tuple(operands), letters, tuple(output))  # pyright: ignore[reportArgumentType]
