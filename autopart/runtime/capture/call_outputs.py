"""Outputs of opaque calls: their shapes from a real run, and fake tensors with these shapes.

A call is opaque where a graph cannot look into it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

META_KEY = "output_template"
"""Key in the `meta` of nodes that call opaque code. Its value is the `OutputTemplate`."""
OPAQUE_LAYER = "opaque_layer"
"""Key in a node's `meta`: the layer that opaque statements make, with a suffix for repeats."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class OutputTemplate:
    """An output with a `TensorShape` in place of each tensor."""

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec

    def paths(self) -> list[tuple[Any, ...]]:
        """Return one path to each tensor: steps (key, index, field) that start at the output."""
        whole = pytree.tree_unflatten(self.leaves, self.structure)
        found, _ = pytree.tree_flatten_with_path(whole)
        return [path for path, leaf in found if isinstance(leaf, TensorShape)]


def is_opaque(node: fx.Node) -> bool:
    """Tell whether the node calls user code that was not captured."""
    return node.op == "call_module" or META_KEY in node.meta


def calls_opaque_code(module: fx.GraphModule) -> bool:
    """Tell whether a graph calls user code that was not captured."""
    return any(map(is_opaque, module.graph.nodes))


def template_of(output: Any) -> OutputTemplate:
    """Return the template for a real output."""
    leaves, structure = pytree.tree_flatten(output)
    return OutputTemplate(tuple(_shape(leaf) for leaf in leaves), structure)


def with_tensors(template: OutputTemplate, tensors: Iterable[torch.Tensor]) -> Any:
    """Return the output with `tensors` filled in, in order."""
    given = iter(tensors)
    leaves = [next(given) if isinstance(leaf, TensorShape) else leaf for leaf in template.leaves]
    return pytree.tree_unflatten(leaves, template.structure)


def empty_tensors(template: OutputTemplate) -> list[torch.Tensor]:
    """Return new tensors with the template's shapes, without gradients."""
    return [
        torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
        for leaf in template.leaves
        if isinstance(leaf, TensorShape)
    ]


def fake_output(template: OutputTemplate, needed: Sequence[torch.Tensor]) -> Any:
    """Return, inside a fake tensor mode, an output whose gradients flow back to `needed`."""
    shapes = [leaf for leaf in template.leaves if isinstance(leaf, TensorShape)]
    return with_tensors(template, _MakeOutput.apply(template, shapes, *needed))


class _MakeOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, template: OutputTemplate, shapes: Sequence[TensorShape], *needed: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        made = empty_tensors(template)
        pairs = zip(made, shapes, strict=True)
        ctx.mark_non_differentiable(*(t for t, shape in pairs if not shape.requires_grad))
        return tuple(made)


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return TensorShape(tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad)
