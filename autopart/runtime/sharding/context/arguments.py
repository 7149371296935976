"""Arguments of a node by their names in torch's schema."""

# pyright: reportPrivateUsage=false

from typing import Any

import torch
from torch import fx


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of an operation of torch by name, with defaults filled in; none for a function."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    assert isinstance(node.target, torch._ops.OpOverload)
    return {
        argument.name: node.args[place] if place < len(node.args) else argument.default_value
        for place, argument in enumerate(schema.arguments)
    } | dict(node.kwargs)


def dimension(value: object, rank: int) -> int:
    """Return a dimension counted from the front."""
    assert isinstance(value, int)
    return value % max(1, rank)


def writes(node: fx.Node) -> bool:
    """Tell whether the operation writes into its first operand."""
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))
