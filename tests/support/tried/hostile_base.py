"""A row of plain blocks with one hostile part in its middle."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.support.tried.trial import Tried

WIDTH = 8


class Calls(nn.Module):
    """A module whose forward is a function of its parts and its inputs."""

    def __init__(self, call: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._call = call

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._call(*self.parts, *inputs, **named)


def linear() -> nn.Linear:
    """One layer of the usual width."""
    return nn.Linear(WIDTH, WIDTH)


def block() -> nn.Module:
    """A plain block."""
    return nn.Sequential(linear(), nn.Tanh())


def features(count: int) -> tuple[torch.Tensor]:
    """The usual inputs."""
    return (torch.randn(count, WIDTH),)


def target(count: int) -> torch.Tensor:
    """The usual target."""
    return torch.randn(count, WIDTH)


def tried(build: Callable[[], nn.Module], **fields: Any) -> Tried:
    """An entry with the usual inputs, target and loss, unless `fields` say otherwise."""
    usual: dict[str, Any] = {"inputs": features, "target": target, "loss_fn": F.mse_loss}
    return Tried(build=build, **(usual | fields))


def amid(part: Callable[[], nn.Module], **fields: Any) -> Tried:
    """The part between two blocks and two blocks."""

    def build() -> nn.Module:
        return nn.Sequential(block(), block(), part(), block(), block())

    return tried(build, **fields)


def calling(call: Callable[..., Any], *parts: Callable[[], nn.Module], **fields: Any) -> Tried:
    """A part amid blocks that calls a function on its own parts and its input."""
    return amid(lambda: Calls(call, *(part() for part in parts)), **fields)


def whole(call: Callable[..., Any], *parts: Callable[[], nn.Module], **fields: Any) -> Tried:
    """A model whose own forward is the function, called with its parts and the inputs."""
    return tried(lambda: Calls(call, *(part() for part in parts)), **fields)
