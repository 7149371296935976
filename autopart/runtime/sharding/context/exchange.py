"""What context ranks exchange: positions gathered and scattered, and a rank's own chunks.

Each function is linear. Its backward is its transpose:

| function | forward | backward |
|---|---|---|
| `own_positions` | the rank's chunks | zeros beside them |
| `gather_positions` | all-gather, chunks in the order of the sequence | reduce-scatter |

Several tensors are gathered in one message: keys and values of a layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.library import custom_op

from autopart.runtime.sharding.context.states import chunks_of
from autopart.runtime.sharding.groups import group_named


@custom_op("autopart::gather_chunks", mutates_args=())
def gather_chunks(
    xs: Sequence[torch.Tensor], dims: Sequence[int], outers: Sequence[int], degree: int, group: str
) -> list[torch.Tensor]:
    """Return the whole tensors from the ranks' chunks along `dims`, in one message."""
    ranks = group_named(group)
    if ranks.is_alone:
        return [x.new_zeros(_whole_shape(x, d, degree)) for x, d in zip(xs, dims, strict=True)]
    message = torch.cat([x.reshape(-1) for x in xs])
    given = [one.split([x.numel() for x in xs]) for one in ranks.all_gather(message)]
    wholes: list[torch.Tensor] = []
    for place, (x, dim, outer) in enumerate(zip(xs, dims, outers, strict=True)):
        whole = x.new_empty(_whole_shape(x, dim, degree))
        for rank in range(degree):
            put_chunks(whole, given[rank][place].view(x.shape), (dim, outer), degree, rank, group)
        wholes.append(whole)
    return wholes


@custom_op("autopart::scatter_chunks", mutates_args=())
def scatter_chunks(
    xs: Sequence[torch.Tensor], dims: Sequence[int], outers: Sequence[int], degree: int, group: str
) -> list[torch.Tensor]:
    """Return the caller's chunks of the ranks' sums of `xs`, in one message."""
    ranks = group_named(group)
    own = [
        [
            own_chunks(x, (d, o), degree, rank, group)
            for x, d, o in zip(xs, dims, outers, strict=True)
        ]
        for rank in range(1 if ranks.is_alone else degree)
    ]
    if ranks.is_alone:
        return own[0]
    summed = ranks.reduce_scatter([torch.cat([x.reshape(-1) for x in of_rank]) for of_rank in own])
    parts = summed.split([x.numel() for x in own[0]])
    # A custom operation's results may not share memory.
    return [part.clone().view(x.shape) for part, x in zip(parts, own[0], strict=True)]


@gather_chunks.register_fake
def _(
    xs: Sequence[torch.Tensor], dims: Sequence[int], outers: Sequence[int], degree: int, group: str
) -> list[torch.Tensor]:
    return [x.new_empty(_whole_shape(x, d, degree)) for x, d in zip(xs, dims, strict=True)]


@scatter_chunks.register_fake
def _(
    xs: Sequence[torch.Tensor], dims: Sequence[int], outers: Sequence[int], degree: int, group: str
) -> list[torch.Tensor]:
    return [
        x.new_empty([n // (degree if d == dim else 1) for d, n in enumerate(x.shape)])
        for x, dim in zip(xs, dims, strict=True)
    ]


Place = tuple[int, int]
"""The dimension of the positions, and the elements of it outside them."""


def own_chunks(x: torch.Tensor, place: Place, degree: int, rank: int, group: str) -> torch.Tensor:
    """Return the rank's chunks of a whole tensor, as a new one."""
    dim, outer = place
    count, own = chunks_of(group, degree, rank)
    chunks = x.unflatten(dim, (outer, count, -1))
    return torch.stack([chunks.select(dim + 1, c) for c in own], dim + 1).flatten(dim, dim + 2)


def put_chunks(
    whole: torch.Tensor, own: torch.Tensor, place: Place, degree: int, rank: int, group: str
) -> None:
    """Write a rank's chunks into the whole tensor."""
    dim, outer = place
    count, places = chunks_of(group, degree, rank)
    chunks = whole.unflatten(dim, (outer, count, -1))
    parts = own.unflatten(dim, (outer, len(places), -1))
    for at, chunk in enumerate(places):
        chunks.select(dim + 1, chunk).copy_(parts.select(dim + 1, at))


def own_positions(x: torch.Tensor, dim: int, outer: int, degree: int, group: str) -> torch.Tensor:
    """Take the rank's chunks of a whole tensor. The gradient is partial: zero outside them."""
    return own_chunks(x, (dim, outer), degree, group_named(group).rank(), group)


def gather_positions(
    xs: Sequence[torch.Tensor], dims: Sequence[int], outers: Sequence[int], degree: int, group: str
) -> tuple[torch.Tensor, ...]:
    """Return whole tensors for readers that differ from rank to rank: their gradients are summed."""
    return _GatherPositions.apply(tuple(dims), tuple(outers), degree, group, *xs)  # pyright: ignore[reportReturnType]


class _GatherPositions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dims: tuple[int, ...],
        outers: tuple[int, ...],
        degree: int,
        group: str,
        *xs: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.places = (dims, outers, degree, group)
        return tuple(gather_chunks(list(xs), dims, outers, degree, group))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None, None, None, None, *scatter_chunks(list(gradients), *ctx.places)


def _whole_shape(x: torch.Tensor, dim: int, degree: int) -> list[int]:
    return [n * (degree if d == dim else 1) for d, n in enumerate(x.shape)]
