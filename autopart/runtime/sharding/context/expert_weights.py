"""Which parameters have experts: one matrix for each, along their first dimension.

They are found by what reads them:

- a product of sorted rows with one matrix per expert (grouped), or
- a product (einsum, bmm, matmul) that keeps the first dimension of a weight and sums over another one of it, in a
  model that chooses among as many values (topk).
"""

import math

from torch import fx

from autopart.runtime.sharding.captured_nodes import CapturedNodes
from autopart.runtime.sharding.context.states import ContextRefused
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.contractions import GROUPED, Product, product_of
from autopart.runtime.sharding.rules.shapes import permuted
from autopart.text import counted

PRODUCTS = frozenset({"einsum", "bmm", "matmul", *GROUPED})
_MOVES = frozenset({"transpose", "permute", "t", "movedim"})
_COPIES = frozenset({"to", "_to_copy", "contiguous", "clone", "alias", "detach"})
_CHOICES = frozenset({"topk", "argmax", "max", "sort", "argsort"})


def expert_weights(graph: CapturedNodes, degree: int) -> dict[str, int]:
    """Return the parameters whose first dimension is experts, with its size.

    Raises ContextRefused where there are none, or where `degree` does not divide them.
    """
    nodes = list(graph.captured.module.graph.nodes)
    choices = _choices(graph, nodes)
    found: dict[str, int] = {}
    for node in nodes:
        product = product_of(graph, node) if operation_name(node) in PRODUCTS else None
        for place in range(len(product.operands) if product is not None else 0):
            assert product is not None
            parameter = _experts_of(graph, product, place, choices)
            if parameter is not None:
                found[str(parameter.target)] = graph.shape(parameter)[0]
    if not found:
        raise ContextRefused(
            f"expert degree {degree}: the model has no experts; they are found as weights with one matrix per "
            "expert, in einsum, bmm, matmul or grouped products behind a topk; use expert degree 1"
        )
    common = math.gcd(*found.values())
    if common % degree:
        name = next(name for name, size in found.items() if size % degree)
        able = [str(d) for d in range(2, common + 1) if common % d == 0]
        raise ContextRefused(
            f"expert degree {degree}: '{name}' has {counted(found[name], 'expert')}, which {counted(degree, 'GPU')} do not "
            f"share equally; "
            f"use expert degree {' or '.join(able) or '1'}"
        )
    return found


def expert_letter(graph: CapturedNodes, product: Product, place: int) -> str | None:
    """Return the letter of the first dimension of the parameter behind an operand, if a product keeps it."""
    chain = _parameter_behind(graph, product.operands[place])
    letters = product.letters[place]
    if chain is None or len(letters) < 3:
        return None
    letter = letters[chain[1].index(0)]
    is_summed = any(own and own not in product.output for own in letters)
    if product.offsets is not None:
        return letter if letter == "e" else None
    return letter if letter and letter in product.output and is_summed else None


def _experts_of(
    graph: CapturedNodes, product: Product, place: int, choices: list[int]
) -> fx.Node | None:
    letter = expert_letter(graph, product, place)
    chain = _parameter_behind(graph, product.operands[place])
    if letter is None or chain is None:
        return None
    size = graph.shape(chain[0])[0]
    is_chosen = product.offsets is not None or any(among % size == 0 for among in choices)
    return chain[0] if is_chosen and size > 1 else None


def _parameter_behind(
    graph: CapturedNodes, node: fx.Node
) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Return the parameter of which a node is a copy with moved dimensions, and which of its dimensions stand where."""
    dims = tuple(range(len(graph.shape(node))))
    while node.op == "call_function":
        name, source = operation_name(node), node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or name not in _MOVES | _COPIES:
            return None
        if name in _MOVES:
            order = permuted(node, len(graph.shape(source)))
            dims = tuple(order[d] for d in dims)
        node = source
    return (node, dims) if graph.is_parameter(node) else None


def _choices(graph: CapturedNodes, nodes: list[fx.Node]) -> list[int]:
    """Return among how many values the model chooses."""
    found: list[int] = []
    for node in nodes:
        operand = node.args[0] if node.args else None
        if operation_name(node) in _CHOICES and isinstance(operand, fx.Node):
            shape = graph.shape(operand)
            found += shape[-1:]
    return found
