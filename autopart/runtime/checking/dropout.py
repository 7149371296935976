"""Switches the dropout of recurrent networks off, in a captured graph and in the plain model.

A GPU's kernels for recurrent networks keep their own random state, which no seed reaches. Other
dropout, and all other random numbers, are seeded alike in both models (`SeededDraws`). Modules stay
in train mode, so BatchNorm normalises by the batch in both.
"""

# pyright: reportPrivateUsage=false

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from autopart.runtime.transforms.seeded_draws import draws, name_of

_PROBABILITY = ("p", "dropout_p", "dropout")
"""Names of the probability argument. It is also the first float among positional arguments."""

_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))


def drop_nothing(module: fx.GraphModule) -> int:
    """Set recurrent networks' dropout to 0 in the graph; return the number that were larger."""
    changed = 0
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            changed += sum(map(_silence, part.graph.nodes))
            part.recompile()
    return changed


def may_draw_numbers(module: fx.GraphModule) -> bool:
    """Whether the graph may draw random numbers. Calls of user code that is not captured may."""
    return any(
        _may_draw(node)
        for part in module.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    )


class DropNothing(TorchFunctionMode):
    """A context in which torch's recurrent networks drop nothing, for any probability."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _RECURRENT:
            return func(*args, **kwargs)
        first = next((place for place, value in enumerate(args) if type(value) is float), None)
        silent = [0.0 if place == first else value for place, value in enumerate(args)]
        return func(*silent, **{k: 0.0 if k in _PROBABILITY else v for k, v in kwargs.items()})


def _may_draw(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return draws(node.target, node.args, node.kwargs)
    known = isinstance(node.target, torch._ops.HigherOrderOperator)
    known = known or node.target in (operator.getitem, getattr)
    return node.op == "call_module" or (node.op == "call_function" and not known)


def _silence(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or name_of(node.target) not in _RECURRENT:
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
