"""Masks that a graph computes from position numbers alone, and that are causal.

Hugging Face's models compare numbers of rows and keys, and give the result to attention. Where this is the causal mask,
attention has a causal mask of its own, and none is written out.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from autopart.runtime.sharding.context.arguments import writes
from autopart.runtime.sharding.context.builder import ContextBuilder, is_random
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.pointwise import is_pointwise

MOST_NUMBERS = 1 << 30
"""Numbers of the largest mask that is computed: 32,768 positions of one sample."""
_OF_BLOCK = 1 << 22
"""Numbers that are computed at once."""
_KEY = "is_causal_mask"
_BY_ELEMENT = frozenset({"__and__", "__or__", "expand", "to", "_to_copy", "clone", "contiguous"})
"""Operations that have the same rows in results and operands, besides pointwise ones."""


def is_causal_mask(graph: ContextBuilder, mask: fx.Node) -> bool:
    """Whether a boolean mask depends on no input and no parameter, and lets each row read the keys up to its own."""
    if _KEY not in mask.meta:
        mask.meta[_KEY] = _is_causal(graph, mask)
    return mask.meta[_KEY]


def _is_causal(graph: ContextBuilder, mask: fx.Node) -> bool:
    value, shape = mask.meta.get("val"), graph.shape(mask)
    if value is None or value.dtype != torch.bool or len(shape) < 2 or shape[-1] != shape[-2]:
        return False
    size, numbers = shape[-1], value.numel()
    sources = _sources(graph, mask)
    if numbers > MOST_NUMBERS or sources is None:
        return False
    large = [n for n in sources if len(graph.shape(n)) > 1 and graph.shape(n)[-2:] == (size, size)]
    if not all(is_pointwise(n) or operation_name(n) in _BY_ELEMENT for n in large):
        return False
    small: dict[fx.Node, Any] = {}
    for node in sources:
        if node not in large:
            small[node] = _run(node, small)
    step = max(1, size * _OF_BLOCK // numbers)
    keys = torch.arange(size)
    for first in range(0, size, step):
        rows = slice(first, min(size, first + step))
        found = _rows_of(large, small, size, rows)[mask]
        if not bool((found == (keys <= keys[rows, None])).all()):
            return False
    return True


def _sources(graph: ContextBuilder, mask: fx.Node) -> Sequence[fx.Node] | None:
    """Return all nodes that a mask is computed from, in their order; None where one is no constant."""
    found, waiting = {mask}, [mask]
    while waiting:
        node = waiting.pop()
        is_constant = isinstance(node.target, torch._ops.OpOverload) and graph.is_tensor(node)
        if not is_constant or writes(node) or any(map(writes, node.users)) or is_random(node):
            return None
        new = [n for n in node.all_input_nodes if n not in found]
        found.update(new)
        waiting += new
    return [node for node in mask.graph.nodes if node in found]


def _run(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    assert callable(node.target)
    place = {"device": "cpu"} if "device" in kwargs else {}
    return node.target(*args, **{**kwargs, **place})  # pyright: ignore


def _rows_of(
    large: Sequence[fx.Node], small: Mapping[fx.Node, Any], size: int, rows: slice
) -> Mapping[fx.Node, Any]:
    """Return some rows of the large values. All is broadcast from the last dimension on, so rows stay rows."""
    found = {
        node: value[..., rows, :] if value.dim() > 1 and value.shape[-2] == size else value
        for node, value in small.items()
    }
    for node in large:
        if operation_name(node) == "expand":
            source, sizes = node.args[0], list(node.args[1])  # pyright: ignore
            if sizes[-2] == size:
                sizes[-2] = rows.stop - rows.start
            assert isinstance(source, fx.Node)
            found[node] = found[source].expand(sizes)
        else:
            found[node] = _run(node, found)
    return found
