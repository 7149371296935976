"""Models that bend gradients: autograd functions, hooks, gradients inside the forward."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.support.tried.hostile_base import (
    WIDTH,
    Calls,
    amid,
    block,
    calling,
    linear,
    tried,
    whole,
)
from tests.support.tried.trial import Tried

Function = torch.autograd.Function


class Reversal(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return -g[0]


class Sign(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return g[0]


class TwoOutputs(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return g[0] * 5 + g[1] * 7


class WithWords(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, how: str, factor: float) -> Any:
        ctx.factor = factor
        return x * factor if how == "scaled" else x

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return g[0] * ctx.factor / 2, None, None


class InPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return g[0] * 3


class WithIndices(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        best, places = x.max(-1, keepdim=True)
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(x == best)
        return best.expand_as(x).clone(), places

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        return ctx.saved_tensors[0] * g[0].sum(-1, keepdim=True)


class KeptOutside(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.x = x.detach()
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *g: Any) -> Any:
        return g[0] * ctx.x.exp()


class Product(Function):
    """A linear product with a wrong gradient of the weight on purpose."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *g: Any) -> Any:
        x, weight = ctx.saved_tensors
        return g[0] @ weight, 2 * g[0].t() @ x


@torch.library.custom_op("autopart_tried::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


halved.register_fake(lambda x: torch.empty_like(x))
halved.register_autograd(lambda ctx, gradient: gradient / 2)


@torch.library.custom_op("autopart_tried::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


doubled.register_autograd(lambda ctx, gradient: gradient * 2)


def _forces(energy: nn.Module, x: torch.Tensor) -> Any:
    x = x.detach().requires_grad_(True)
    found = energy(x)
    (force,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    return found, -force


def _penalised(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    inner = x.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(part(inner).sum(), inner, create_graph=True)
    return part(x) + slope.square().mean()


def _hooked_value(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = part(x)
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 0.5)
    return y


def _packed(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 1.0, lambda t: t):
        return part(x)


def _jacobian(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(x) + torch.func.vmap(torch.func.grad(lambda one: part(one).sum()))(x)


def _with(hook: str, *given: Any) -> Any:
    def build() -> nn.Module:
        part = block()
        getattr(part, hook)(*given)
        return part

    return build


def _count(module: nn.Module, *_: Any) -> None:
    module.seen = getattr(module, "seen", 0) + 1


def _halve(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


def _raising_hook() -> nn.Module:
    part = block()
    next(part.parameters()).register_hook(_raise)
    return part


def _raise(gradient: torch.Tensor) -> torch.Tensor:
    raise ValueError(f"no gradient of shape {tuple(gradient.shape)}")


def _on_parameter(late: bool) -> nn.Module:
    part = block()
    weight = next(part.parameters())
    if late:
        weight.register_post_accumulate_grad_hook(_halve)
    else:
        weight.register_hook(lambda gradient: gradient * 0.1)
    return part


def _patched() -> nn.Module:
    part = linear()
    plain = part.forward
    part.forward = lambda x: plain(x) * 2  # pyright: ignore
    return part


def _no_gradient(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = part(x).abs().mean()
    return part(x) / (1 + scale)


def _forces_loss(output: Any, target: Any) -> torch.Tensor:
    return F.mse_loss(output[0], target) + output[1].square().mean()


def _weighted(part: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return Product.apply(x, part.weight) + part.bias  # pyright: ignore


MODELS: dict[str, Tried] = {
    "gradient_reversal": calling(lambda x: Reversal.apply(x)),
    "straight_through": calling(lambda x: Sign.apply(x)),
    "function_with_two_outputs": calling(lambda x: sum(TwoOutputs.apply(x))),
    "function_with_words": calling(lambda x: WithWords.apply(x, "scaled", 3.0)),
    "function_in_place": calling(lambda x: InPlace.apply(x * 1.0)),
    "function_with_indices": calling(lambda x: WithIndices.apply(x)[0]),
    "function_keeps_outside": calling(lambda x: KeptOutside.apply(x)),
    "function_with_a_weight": calling(_weighted, linear),
    "function_in_every_block": tried(
        lambda: nn.Sequential(*(Calls(lambda part, x: Sign.apply(part(x)), linear()) for _ in range(4)))
    ),
    "function_in_the_root": whole(
        lambda a, b, x: b(Reversal.apply(a(x))), block, block, one_layer="the autograd function Reversal"
    ),
    "custom_operation": calling(lambda part, x: halved(part(x)), linear),
    "custom_operation_without_fake": calling(lambda part, x: doubled(part(x)), linear),
    "forces": whole(_forces, block, loss_fn=_forces_loss, one_layer="computes gradients in its forward"),
    "gradient_penalty": calling(_penalised, block),
    "gradients_by_vmap": calling(_jacobian, block, refused="don't yet support saved tensor hooks"),
    "stopped_gradient": calling(lambda part, x: part(x.detach()) + x, linear),
    "no_grad_inside": calling(_no_gradient, block),
    "everything_stopped": calling(lambda x: x.detach()),
    "hook_on_a_value": calling(_hooked_value, block),
    "saved_tensors_hooks": calling(_packed, block),
    "forward_hook": amid(_with("register_forward_hook", lambda m, i, o: o * 2)),
    "forward_pre_hook": amid(_with("register_forward_pre_hook", lambda m, i: (i[0] + 1,))),
    "backward_hook": amid(_with("register_full_backward_hook", lambda m, gi, go: (gi[0] * 3,))),
    "backward_pre_hook": amid(_with("register_full_backward_pre_hook", lambda m, go: (go[0] * 3,))),
    "counting_hook": amid(_with("register_forward_hook", _count)),
    "parameter_hook": amid(lambda: _on_parameter(False)),
    "late_parameter_hook": amid(lambda: _on_parameter(True)),
    "raising_hook": amid(_raising_hook, refused="ValueError: no gradient of shape"),
    "patched_forward": amid(_patched),
    "checkpointed": calling(lambda part, x: checkpoint(part, x, use_reentrant=False), block),
    "checkpointed_reentrant": calling(lambda part, x: checkpoint(part, x, use_reentrant=True), block),
    "sparse_gradient": tried(
        lambda: nn.Sequential(nn.Embedding(9, WIDTH, sparse=True), block(), block()),
        refused="sparse=False",
        inputs=lambda n: (torch.randint(0, 9, (n,)),),
    ),
    "bag_of_embeddings": tried(
        lambda: nn.Sequential(nn.EmbeddingBag(9, WIDTH), block(), block()),
        inputs=lambda n: (torch.randint(0, 9, (n, 3)),),
    ),
}  # fmt: skip
