"""Values that enter statements: changes to them, and whether a call in a graph can take them."""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True)
class State:
    """Properties of a value that statements may change without binding a name."""

    versions: tuple[int, ...]
    leaves: tuple[int, ...]
    hooks: tuple[int, ...]

    def is_held_otherwise(self, after: "State") -> bool:
        """Tell whether a container has other elements or a tensor has other gradient hooks."""
        return self.leaves != after.leaves or self.hooks != after.hooks


def states_of(given: Mapping[str, Any]) -> dict[str, State]:
    """Return the state of each value."""
    found: dict[str, State] = {}
    for name, value in given.items():
        leaves = [] if isinstance(value, nn.Module) else pytree.tree_leaves(value)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        found[name] = State(
            tuple(t._version for t in tensors),  # pyright: ignore[reportPrivateUsage]
            tuple(map(id, leaves)),
            tuple(len(t._backward_hooks or ()) for t in tensors),  # pyright: ignore
        )
    return found


def run_noting_backwards(run: Callable[..., Any], given: Mapping[str, Any]) -> tuple[Any, bool]:
    """Run statements. Tell also whether they computed gradients."""
    engine: Any = torch.autograd
    noted: list[bool] = []
    grad, backward = engine.grad, engine.backward

    def noting(call: Any) -> Any:
        def noted_call(*args: Any, **kwargs: Any) -> Any:
            noted.append(True)
            return call(*args, **kwargs)

        return noted_call

    engine.grad, engine.backward = noting(grad), noting(backward)
    try:
        return run(**given), bool(noted)
    finally:
        engine.grad, engine.backward = grad, backward


def is_shared(name: str, value: Any, local: Mapping[str, Any]) -> bool:
    """Tell whether a tensor that is written into lies in memory that another name shows."""
    if not isinstance(value, torch.Tensor):
        return True
    storage = value.untyped_storage().data_ptr()
    others = [v for n, v in local.items() if n != name and not isinstance(v, nn.Module)]
    tensors = [t for t in pytree.tree_leaves(others) if isinstance(t, torch.Tensor)]
    return any(t is not value and t.untyped_storage().data_ptr() == storage for t in tensors)


def requires_grad(value: Any) -> bool:
    """Tell whether a gradient may flow back to the value."""
    leaves = [] if isinstance(value, nn.Module) else pytree.tree_leaves(value)
    return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def has_moving_shape(value: Any) -> bool:
    """Tell whether a shape or number in the value depends on values of tensors."""
    leaves = [] if isinstance(value, nn.Module) else pytree.tree_leaves(value)
    return any(
        isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool)
        or (isinstance(leaf, torch.Tensor) and any(isinstance(n, torch.SymInt) for n in leaf.shape))
        for leaf in leaves
    )
