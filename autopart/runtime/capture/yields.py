"""What a call that a graph cannot look into returned in a real run, and the same on fake tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

META_KEY = "yields"
"""Where a node that calls opaque code carries its `Yields`."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class Yields:
    """An output with `TensorShape`s in the place of tensors."""

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec

    def paths(self) -> list[tuple[Any, ...]]:
        """How to get at each tensor from the output: one step (key, index, field) after another."""
        whole = pytree.tree_unflatten(self.leaves, self.structure)
        found, _ = pytree.tree_flatten_with_path(whole)
        return [path for path, leaf in found if isinstance(leaf, TensorShape)]


def yields_of(output: Any) -> Yields:
    """Of a real output."""
    leaves, structure = pytree.tree_flatten(output)
    return Yields(tuple(_shape(leaf) for leaf in leaves), structure)


def with_tensors(yields: Yields, tensors: Iterable[torch.Tensor]) -> Any:
    """The output with `tensors` in their places, in order."""
    given = iter(tensors)
    leaves = [next(given) if isinstance(leaf, TensorShape) else leaf for leaf in yields.leaves]
    return pytree.tree_unflatten(leaves, yields.structure)


def empty_tensors(yields: Yields) -> list[torch.Tensor]:
    """New tensors of the right shapes, without gradients."""
    return [
        torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
        for leaf in yields.leaves
        if isinstance(leaf, TensorShape)
    ]


def fake_output(yields: Yields, needed: Sequence[torch.Tensor]) -> Any:
    """Inside a fake tensor mode: an output through which gradients flow back to `needed`."""
    shapes = [leaf for leaf in yields.leaves if isinstance(leaf, TensorShape)]
    return with_tensors(yields, _Yield.apply(yields, shapes, *needed))


class _Yield(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, yields: Yields, shapes: Sequence[TensorShape], *needed: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        made = empty_tensors(yields)
        pairs = zip(made, shapes, strict=True)
        ctx.mark_non_differentiable(*(t for t, shape in pairs if not shape.requires_grad))
        return tuple(made)


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return TensorShape(tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad)
