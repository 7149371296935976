"""Attention of a rank's rows to all keys and values.

A row of the output is softmax(q k' / sqrt(d) + mask) v of that row's q and mask, and of all k and v. So a rank needs
its rows of q and of the mask, and whole k and v, which it gathers in one message. The gradients of k and v are sums over
all rows, and so over all ranks: a reduce-scatter. With a ring, k and v come block by block (`context/ring.py`).
"""

from typing import Any

import torch
from torch import fx

from autopart.runtime.sharding.context.arguments import arguments
from autopart.runtime.sharding.context.builder import ContextBuilder, is_random
from autopart.runtime.sharding.context.causal import causal_attention
from autopart.runtime.sharding.context.draws import draw_own_positions
from autopart.runtime.sharding.context.rules.elements import viewed_tensor
from autopart.runtime.sharding.context.rules.masks import is_causal_mask
from autopart.runtime.sharding.context.rules.ring import Chain, put_ring
from autopart.runtime.sharding.context.states import EXPERT, Rows
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.own_draws import FIRST_GIVEN, own_draws

aten = torch.ops.aten
_REPEATS = frozenset(
    {
        "_unsafe_view", "clone", "contiguous", "expand", "flatten", "repeat_interleave", "reshape", "slice",
        "unsqueeze", "view",
    }
)  # fmt: skip


def is_attention(node: fx.Node) -> bool:
    """Tell whether the node is fused attention, as it is or with random numbers of a tensor rank."""
    if node.target is own_draws:
        return node.args[0] is aten.scaled_dot_product_attention.default
    return operation_name(node) == "scaled_dot_product_attention"


def cut_attention(graph: ContextBuilder, node: fx.Node) -> None:
    """Attend from the rank's rows."""
    given = _with_causal_mask(graph, node, _given(node))
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    rows, dims = graph.rows(query), len(graph.shape(query))
    if rows is not None and graph.group == EXPERT and rows.dim < dims - 2:
        _attend_alone(graph, node, rows.plain, [query, key, value, mask])
        return
    if rows is None or rows.plain != Rows(dims - 2, graph.shape(query)[-2]):
        graph.fail(node, "does not have its rows along one sequence")
    is_causal, dropout = bool(given["is_causal"]), float(given["dropout_p"])
    if is_causal and graph.shape(query)[-2] != graph.shape(key)[-2]:
        graph.fail(node, "has a causal mask over sequences of two lengths")
    chains = (_before_repeats(graph, node, key), _before_repeats(graph, node, value))
    if graph.ring and put_ring(graph, node, rows, given, chains):
        return
    keys, values = _whole_keys(graph, node, chains)
    own = graph.own(query, node, rows)
    scale, shares = given["scale"], bool(given["enable_gqa"])
    masked = None if mask is None else _mask_rows(graph, mask, rows)
    if is_causal:
        args = (own, keys, values, dropout, scale, shares, graph.degree, graph.group)
        new = graph.put(node, rows, causal_attention, args)
        given_rows: list[Rows | None] = [rows, *(None for _ in args[1:])]
    else:
        local = None if mask is None else graph.formed(mask, node, masked)
        args = (own, keys, values, local, dropout, False)
        kwargs = {"scale": scale, "enable_gqa": shares}
        new = graph.put(node, rows, aten.scaled_dot_product_attention.default, args, **kwargs)
        given_rows = [rows, None, None, masked, None, None, None, None]
    if is_random(node):
        of_slices = _slices(node, 3 if is_causal else 4) if node.target is own_draws else None
        draw_own_positions(new, given_rows, rows, (graph.degree, graph.group), of_slices)


def _attend_alone(
    graph: ContextBuilder, node: fx.Node, rows: Rows, tensors: list[fx.Node | None]
) -> None:
    """Attend inside each of the rank's samples: nothing meets between samples."""
    demands: dict[fx.Node, Rows | None] = {}
    for x in tensors:
        if x is not None:
            shape = graph.shape(x)
            dim = rows.dim - (len(graph.shape(node)) - len(shape))
            demands[x] = None if dim < 0 or shape[dim] == 1 else rows.at(dim)
    graph.put_on_rows(node, rows, demands)


_ARGUMENTS = 8
"""Arguments of attention in a local graph, its tensors first."""


def _slices(node: fx.Node, tensors: int) -> tuple[Any, ...]:
    """Return how a tensor rank's slices stand in attention's arguments, of which the first are tensors."""
    _, cuts, *rest = node.args[:FIRST_GIVEN]
    assert isinstance(cuts, tuple)
    first = [*cuts, *(None for _ in range(_ARGUMENTS))][:tensors]
    return ((*first, *(None for _ in range(_ARGUMENTS - tensors))), *rest)


def _with_causal_mask(
    graph: ContextBuilder, node: fx.Node, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of attention, with a causal mask of its own in place of one that is written out."""
    mask, lengths = given["attn_mask"], {graph.shape(given[x])[-2] for x in ("query", "key")}
    if mask is None or given["is_causal"] or graph.group == EXPERT or is_random(node):
        return given
    is_square = lengths == {graph.shape(mask)[-1]}
    if not is_square or not is_causal_mask(graph, mask):
        return given
    return given | {"attn_mask": None, "is_causal": True}


def _given(node: fx.Node) -> dict[str, Any]:
    if node.target is not own_draws:
        return arguments(node)
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = dict(zip(names, (None, None, None, None, 0.0, False, None, False), strict=True))
    return defaults | dict(zip(names, node.args[FIRST_GIVEN:], strict=False)) | dict(node.kwargs)


def _mask_rows(graph: ContextBuilder, mask: fx.Node, rows: Rows) -> Rows | None:
    shape = graph.shape(mask)
    if len(shape) < 2 or shape[-2] == 1:
        return None
    return rows.at(len(shape) - 2)


def _whole_keys(
    graph: ContextBuilder, node: fx.Node, chains: tuple[Chain, Chain]
) -> tuple[fx.Node, fx.Node]:
    """Return keys and values with all positions. Repetitions for query heads are made behind the gather."""
    cut = [chain[0] for chain in chains if graph.rows(chain[0]) is not None]
    different = list(dict.fromkeys(cut))
    found = dict(zip(different, graph.gathered(different, node), strict=True)) if cut else {}
    keys, values = (_repeated(graph, node, found.get(chain[0]), chain) for chain in chains)
    return keys, values


def _before_repeats(graph: ContextBuilder, node: fx.Node, operand: fx.Node) -> list[fx.Node]:
    """Return the smallest tensor of which `operand` is a repetition, and what repeats it."""
    chain = [operand]
    while operation_name(chain[0]) in _REPEATS and graph.layer(chain[0]) == graph.layer(node):
        source = chain[0].args[0]
        assert isinstance(source, fx.Node)
        chain.insert(0, source)
    sizes = [_elements(graph, n) for n in chain]
    least = max(place for place, size in enumerate(sizes) if size == min(sizes))
    return chain[least:]


def _repeated(
    graph: ContextBuilder, node: fx.Node, gathered: fx.Node | None, chain: list[fx.Node]
) -> fx.Node:
    if gathered is None and viewed_tensor(chain[0]) in graph.written:
        # Rows were written into a new tensor. A second attempt has these rows of it alone, and gathers them.
        dims, size = len(graph.shape(chain[0])), graph.shape(chain[0])[-2]
        found = graph.own(chain[0], node, Rows(dims - 2, size))
    else:
        found = graph.whole(chain[0], node) if gathered is None else gathered
    for one in chain[1:]:
        assert callable(one.target)
        found = graph.emit(one, one.target, found, *one.args[1:])
    return found


def _elements(graph: ContextBuilder, node: fx.Node) -> int:
    total = 1
    for size in graph.shape(node):
        total *= size
    return total
