"""A split backward: weight gradients of matrix products wait for W.

Written by autopart, for `pipeline_cut.py`. Torch's own split takes the autograd graph apart. In
some models it fails or loses gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

# Torch's own split takes the autograd graph apart. In some models it fails or loses gradients.


def defer_weight_gradients(graph: fx.Graph, root: dict[str, Any], deferred: nn.Module) -> None:
    """Run products with a trained weight through `deferred`; everything else stays in I."""
    linear, addmm = torch.ops.aten.linear.default, torch.ops.aten.addmm.default

    def is_trained(node: Any) -> bool:
        value = root.get(node.target) if node.op == "get_attr" else None
        # Only autograd calls a gradient's hooks, so it computes the gradients that have some.
        return isinstance(value, nn.Parameter) and value.requires_grad and not _has_hooks(value)

    for node in list(graph.nodes):
        if node.target not in (linear, addmm) or node.kwargs:
            continue
        transposed = node.target is addmm
        # addmm takes (bias, x, weight) and linear takes (x, weight, bias); a weight in addmm is
        # transposed. A bias that is no vector would need a gradient summed in another shape.
        x, weight, bias = node.args[1:3] + node.args[:1] if transposed else (*node.args, None)[:3]
        if not is_trained(weight) or (
            transposed and bias is not None and bias.meta["fake"].ndim != 1
        ):
            continue
        root["deferred"] = deferred
        with graph.inserting_before(node):
            twin = graph.call_module("deferred", (x, weight, bias, transposed))
        twin.meta = node.meta
        node.replace_all_uses_with(twin)
        graph.erase_node(node)


def _has_hooks(parameter: nn.Parameter) -> bool:
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(parameter, name, None) for name in hooks)


class Deferred(nn.Module):
    """A linear layer, or addmm, that leaves its weight gradient to W."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []

    def forward(self, x: Any, weight: Any, bias: Any, transposed: bool) -> torch.Tensor:
        return _Product.apply(x, weight, bias, transposed, self.waiting)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, transposed: bool, waiting: list[Any]
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.transposed, ctx.waiting = weight, transposed, waiting
        made = torch.addmm(bias, x, weight) if transposed else nn.functional.linear(x, weight, bias)
        return made.data  # no view: the model's next operation may write into it

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (gradient,) = grad_outputs
        (x,), weight, transposed = ctx.saved_tensors, ctx.weight, ctx.transposed
        gradient = gradient.to(weight.dtype)  # autocast computes in another dtype
        rows = gradient.reshape(-1, gradient.shape[-1])
        given = x.detach().to(weight.dtype).reshape(-1, x.shape[-1])

        def add() -> None:
            part = given.T @ rows if transposed else rows.T @ given
            weight.grad = part if weight.grad is None else weight.grad.add_(part)

        ctx.waiting.append(add)
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ (weight.detach().T if transposed else weight.detach())).to(x.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, None, of_bias, None, None
