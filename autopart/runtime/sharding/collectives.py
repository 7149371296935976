"""Collectives inside a layer: custom operations, and the pairs that autograd needs.

Each function here is linear. Its backward is its transpose, so that every gradient is exact:

| function | forward | backward |
|---|---|---|
| `copy` | identity | all-reduce |
| `reduce` | all-reduce | identity |
| `gather`, for sharded readers | all-gather | reduce-scatter |
| `gather`, for equal readers | all-gather | own part |
| `scatter` | reduce-scatter | all-gather |
| `take` | own part | all-gather |
| `own_part` | own part | zeros beside it |

The custom operations below them (`autopart::all_reduce`, …) have no gradient of their own. A custom
operation may not return its operand, and a copy must cost nothing. So the pairs are functions.
"""

from typing import Any

import torch
from torch.library import custom_op

from autopart.runtime.sharding.groups import group_named

Parts = tuple[int, ...]
"""Sizes of the parts that a dimension is made of, each of which is sharded; () for one part."""


@custom_op("autopart::all_reduce", mutates_args=())
def all_reduce(x: torch.Tensor, operation: str, group: str) -> torch.Tensor:
    """Return the group's "sum" or "max" of `x`."""
    return group_named(group).all_reduce(x, operation)


@custom_op("autopart::all_gather", mutates_args=())
def all_gather(x: torch.Tensor, dim: int, degree: int, group: str) -> torch.Tensor:
    """Return the group's tensors, joined along `dim`."""
    return torch.cat(list(group_named(group).all_gather(x)), dim)


@custom_op("autopart::reduce_scatter", mutates_args=())
def reduce_scatter(x: torch.Tensor, dim: int, degree: int, group: str) -> torch.Tensor:
    """Return the caller's part, along `dim`, of the group's sum of `x`."""
    return group_named(group).reduce_scatter(list(x.chunk(degree, dim)))


@all_reduce.register_fake
def _(x: torch.Tensor, operation: str, group: str) -> torch.Tensor:
    return torch.empty_like(x)


@all_gather.register_fake
def _(x: torch.Tensor, dim: int, degree: int, group: str) -> torch.Tensor:
    return x.new_empty([n * (degree if d == dim else 1) for d, n in enumerate(x.shape)])


@reduce_scatter.register_fake
def _(x: torch.Tensor, dim: int, degree: int, group: str) -> torch.Tensor:
    return x.new_empty([n // (degree if d == dim else 1) for d, n in enumerate(x.shape)])


def own_slices(
    x: torch.Tensor, dim: int, parts: Parts, degree: int, rank: int
) -> tuple[torch.Tensor, ...]:
    """Return the rank's slice of each part of `x` along `dim`. They are views."""
    whole = parts or (x.shape[dim],)
    return tuple(part.chunk(degree, dim)[rank] for part in x.split(list(whole), dim))


def joined_slices(x: list[torch.Tensor], dim: int, parts: Parts) -> torch.Tensor:
    """Return the whole tensor from the ranks' slices: the inverse of `own_slices` on all ranks."""
    if not parts:
        return torch.cat(x, dim)
    local = [size // len(x) for size in parts]
    by_rank = [one.split(local, dim) for one in x]
    return torch.cat([slices[p] for p in range(len(parts)) for slices in by_rank], dim)


def copy(x: torch.Tensor, group: str) -> torch.Tensor:
    """Hand a replicated tensor to sharded readers: their gradients are summed."""
    return _Copy.apply(x, group)  # pyright: ignore[reportReturnType]


def reduce(x: torch.Tensor, group: str) -> torch.Tensor:
    """Sum partial results: readers are equal on all ranks, and so are their gradients."""
    return _Reduce.apply(x, group)  # pyright: ignore[reportReturnType]


def gather(x: torch.Tensor, dim: int, for_sharded: bool, degree: int, group: str) -> torch.Tensor:
    """Make a sequence-sharded tensor whole, for readers that are sharded or equal."""
    return _Gather.apply(x, dim, for_sharded, degree, group)  # pyright: ignore[reportReturnType]


def scatter(x: torch.Tensor, dim: int, degree: int, group: str) -> torch.Tensor:
    """Sum partial results and leave each rank its part of the sequence."""
    return _Scatter.apply(x, dim, degree, group)  # pyright: ignore[reportReturnType]


def take(x: torch.Tensor, dim: int, parts: Parts, degree: int, group: str) -> torch.Tensor:
    """Take the own part of a replicated tensor, whose gradient is gathered."""
    return _Take.apply(x, dim, tuple(parts), degree, group)  # pyright: ignore[reportReturnType]


def own_part(x: torch.Tensor, dim: int, parts: Parts, degree: int, group: str) -> torch.Tensor:
    """Take the own part of a parameter. The gradient is partial: zero outside the part."""
    slices = own_slices(x, dim, tuple(parts), degree, group_named(group).rank())
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim)


def own_copy(x: torch.Tensor, dim: int, copies: int, group: str) -> torch.Tensor:
    """Take the rank's share of a slice that `copies` consecutive ranks hold."""
    return x.chunk(copies, dim)[group_named(group).rank() % copies]


def own_rows(index: torch.Tensor, rows: int, group: str) -> torch.Tensor:
    """Number rows from the rank's first one: `index` minus rank times `rows`."""
    return index - group_named(group).rank() * rows


LINEAR = (copy, reduce, gather, scatter, take)
"""The functions with a collective. Their backward reads no operand."""


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: str) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _summed(gradients[0], ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: str) -> torch.Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dim: int, for_sharded: bool, degree: int, group: str
    ) -> torch.Tensor:
        ctx.dim, ctx.for_sharded, ctx.degree, ctx.group = dim, for_sharded, degree, group
        return all_gather(x, dim, degree, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if ctx.for_sharded:
            own = reduce_scatter(gradients[0], ctx.dim, ctx.degree, ctx.group)
        else:
            own = _own(gradients[0], ctx.dim, (), ctx.degree, ctx.group)
        return own, None, None, None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, degree: int, group: str) -> torch.Tensor:
        ctx.dim, ctx.degree, ctx.group = dim, degree, group
        return reduce_scatter(x, dim, degree, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return all_gather(gradients[0], ctx.dim, ctx.degree, ctx.group), None, None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dim: int, parts: Parts, degree: int, group: str
    ) -> torch.Tensor:
        ctx.dim, ctx.parts, ctx.degree, ctx.group = dim, parts, degree, group
        return _own(x, dim, parts, degree, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        whole = all_gather(gradients[0], ctx.dim, ctx.degree, ctx.group)
        if ctx.parts:
            whole = joined_slices(list(whole.chunk(ctx.degree, ctx.dim)), ctx.dim, ctx.parts)
        return whole, None, None, None, None


def _summed(x: torch.Tensor, group: str) -> torch.Tensor:
    # A profile leaves collectives out: no copy may stand in for them.
    return x.view_as(x) if group_named(group).is_alone else all_reduce(x, "sum", group)


def _own(x: torch.Tensor, dim: int, parts: Parts, degree: int, group: str) -> torch.Tensor:
    first, *others = own_slices(x, dim, parts, degree, group_named(group).rank())
    if others:
        return torch.cat([first, *others], dim)
    # A new tensor, so that the whole one may be freed.
    return first.clone(memory_format=torch.contiguous_format)
