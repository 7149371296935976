"""Models that checkpoint their blocks themselves, in the ways that torch has."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


class HalfBlock(Block):
    """Only the sum and the norm are not under the checkpoint."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(
            checkpoint(super().forward, x, use_reentrant=False), [WIDTH]
        )


class Body(nn.Module):
    """A first layer, three blocks that `run` calls, and a last layer."""

    def __init__(
        self,
        run: Callable[[nn.Sequential, torch.Tensor], torch.Tensor],
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(*(block() for _ in range(4)))
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.run(self.blocks, self.first(x)))


def _each(blocks: nn.Sequential, x: torch.Tensor, use_reentrant: bool) -> torch.Tensor:
    for block in blocks:
        x = cast(torch.Tensor, checkpoint(block, x, use_reentrant=use_reentrant))
    return x


def plain() -> nn.Module:
    return Body(lambda blocks, x: blocks(x))


def each_block() -> nn.Module:
    return Body(lambda blocks, x: _each(blocks, x, use_reentrant=False))


def each_block_reentrant() -> nn.Module:
    return Body(lambda blocks, x: _each(blocks, x, use_reentrant=True))


class _Unneeded(Body):
    """Its first block is under a checkpoint, and torch gives that block no gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.run(self.blocks, self.first(x).detach()))


def no_gradient_reentrant() -> nn.Module:
    return _Unneeded(lambda blocks, x: _each(blocks, x, use_reentrant=True))


def _each_in_a(
    pack: Callable[[torch.Tensor], Any], unpack: Callable[[Any], torch.Tensor]
) -> Callable[[nn.Sequential, torch.Tensor], torch.Tensor]:
    """Each block is under a reentrant checkpoint, and `pack` puts its result into a container."""

    def packed(block: nn.Module, x: torch.Tensor) -> Any:
        return pack(block(x))

    def run(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            made = checkpoint(packed, block, x, use_reentrant=True)
            x = (unpack(made) + x) / 2
        return x

    return run


def dict_reentrant() -> nn.Module:
    """Torch gives gradients to no tensor in a dictionary."""
    return Body(_each_in_a(lambda y: {"y": y}, lambda kept: kept["y"]))


def tuple_reentrant() -> nn.Module:
    return Body(_each_in_a(lambda y: (y, 2), lambda kept: kept[0]))


def half_of_them() -> nn.Module:
    """Of two segments, torch leaves the last one alone."""
    in_segments: Any = checkpoint_sequential
    return Body(lambda blocks, x: in_segments(blocks, 2, x, use_reentrant=False))


def parts_of_blocks() -> nn.Module:
    return Body(lambda blocks, x: blocks(x), HalfBlock)


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.rand(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)
