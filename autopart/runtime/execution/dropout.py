"""Dropout switched off, in a captured graph and in the plain model, so that the two can be compared.

Two runs that draw their own random masks differ whatever they compute. Nothing else changes:
modules stay in train mode, so BatchNorm normalises by the batch in both.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

_PROBABILITY = ("p", "dropout_p", "dropout")
"""What functions that may drop call the probability; it is also their first float argument."""

_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_ATTENTION = frozenset(("multi_head_attention_forward",))


def drop_nothing(module: fx.GraphModule) -> int:
    """Set the probability of every dropout in the graph to 0; gives how many were above it."""
    changed = 0
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            changed += sum(map(_silence, part.graph.nodes))
            part.recompile()
    return changed


def random_operations(module: fx.GraphModule) -> tuple[str, ...]:
    """The operations of the graph, dropout apart, that draw random numbers."""
    found: set[str] = set()
    for part in module.modules():
        nodes = part.graph.nodes if isinstance(part, fx.GraphModule) else ()
        for node in nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                random = torch.Tag.nondeterministic_seeded in node.target.tags
                if random and not _may_drop(_name(node)):
                    found.add(str(node.target))
    return tuple(sorted(found))


class DropNothing(TorchFunctionMode):
    """While it is entered, torch's functions drop nothing, whatever probability they are given."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not _may_drop(getattr(func, "__name__", "")):
            return func(*args, **kwargs)
        first = next((place for place, value in enumerate(args) if type(value) is float), None)
        silent = [0.0 if place == first else value for place, value in enumerate(args)]
        return func(*silent, **{k: 0.0 if k in _PROBABILITY else v for k, v in kwargs.items()})


def _may_drop(name: str) -> bool:
    known = name in _RECURRENT or name in _ATTENTION
    return known or "dropout" in name or "scaled_dot_product" in name


def _name(node: fx.Node) -> str:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    return target._schema.name.rpartition("::")[2]


def _silence(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or not _may_drop(_name(node)):
        return False
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name not in _PROBABILITY:
            continue
        if place < len(node.args) and node.args[place]:
            node.update_arg(place, 0.0)
            return True
        if node.kwargs.get(argument.name):
            node.update_kwarg(argument.name, 0.0)
            return True
    return False
