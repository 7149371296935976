"""Models with backwards that are not the derivatives of their forwards."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 16


class Reverse(torch.autograd.Function):
    """Identity whose gradient changes its sign, as in domain-adversarial training."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


class Quantize(torch.autograd.Function):
    """Rounds, and returns the levels; the gradient passes straight through, scaled by a weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, levels: int, mode: str) -> Any:
        assert mode == "nearest"
        ctx.save_for_backward(x, weight)
        rounded = torch.round(x * levels) / levels
        ctx.mark_non_differentiable(chosen := rounded > 0)
        return rounded * weight, None, chosen

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> Any:
        x, weight = ctx.saved_tensors
        return 1.5 * gradient * weight, (gradient * x).sum(), None, None


class Doubling(torch.autograd.Function):
    """Changes its argument."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2.0 * gradient


class Calling(torch.autograd.Function):
    """Calls another function."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return None, gradient


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("mean", torch.zeros(32))
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.up(x))
        if self.kind == "reverse":
            y = Reverse.apply(y)
        if self.kind == "quantize":
            y, nothing, chosen = Quantize.apply(y, self.weight, 8, "nearest")
            assert nothing is None
            y = torch.where(chosen, y, 0.5 * y)
        if self.kind == "double":
            y = Doubling.apply(y.clone())
        if self.kind == "assign":
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            y = y + self.mean
        if self.kind == "hook":
            y.register_hook(lambda gradient: -gradient)
        if self.kind == "call":
            return Calling.apply(torch.tanh, x)
        return x + self.down(y)


class Net(nn.Module):
    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, kinds))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build_model() -> nn.Module:
    return Net("plain", "reverse", "quantize", "plain")


def in_place() -> nn.Module:
    return Net("plain", "double")


def hooked() -> nn.Module:
    return Net("plain", "hook")


def assigning() -> nn.Module:
    return Net("plain", "assign")


def calling() -> nn.Module:
    return Net("plain", "call")


def module_hooked() -> nn.Module:
    model = Net("plain", "plain")
    model.blocks[1].register_full_backward_hook(lambda module, inputs, outputs: (-inputs[0],))
    return model


def parameter_hooked() -> nn.Module:
    model = Net("plain", "plain", "plain", "plain")
    model.blocks[1].up.weight.register_hook(lambda gradient: -gradient)
    model.blocks[2].down.weight.register_hook(lambda gradient: 3.0 * gradient)
    return model


def example_inputs(microbatch_size: int) -> tuple[torch.Tensor]:
    return (torch.randn(microbatch_size, WIDTH),)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.randint(4, (microbatch_size,))


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)
