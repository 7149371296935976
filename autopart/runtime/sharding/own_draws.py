"""Random numbers for slices: each rank of a tensor group draws those of its own slice.

A value that is whole on each rank needs equal numbers on all ranks: all draw from one stream, whose
generator stands at the same place on all. A slice needs other numbers than the slices of other ranks.
Its operation draws from a stream of its own, and the common stream goes on as if one number was drawn. A
layer that runs again in backward restores the common stream, and with it the seed of its own one.

In a check the plain model's numbers are drawn (`seeded_draws`): the slice is put into a whole value, the
operation draws for the whole, and the rank takes its slice of the result. The operation works on each
slice alone, so the rank's own one may stand for those of other ranks. An operation may refuse zeros there.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from autopart.runtime.sharding.collectives import Parts, joined_slices, own_slices
from autopart.runtime.sharding.groups import group_named
from autopart.runtime.sharding.states import ShardState
from autopart.runtime.transforms.seeded_draws import SeededDraws

Cut = tuple[int, Parts, int]
"""How a value is sharded: the dimension, its parts, and the ranks that hold the same slice."""

FIRST_GIVEN = 5
"""Place of the operation's first argument among those of `own_draws`."""

_STRIDE = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: seeds of neighbouring streams differ in all bits."""
_SEEDS = 2**63


def own_draws(
    operation: Callable[..., Any],
    cuts: Sequence[Cut | None],
    result: Cut,
    degree: int,
    group: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Return `operation(*args, **kwargs)` for the rank's slices, with random numbers of its own.

    `cuts` has how each of `args` and then each of `kwargs` is sharded, None for whole ones and plain
    values. `result` has how the results are. Ranks that hold the same slice draw equal numbers.
    """
    ranks = group_named(group)
    if ranks.is_alone:
        return operation(*args, **kwargs)
    if SeededDraws.running is None:
        copies = result[2]
        with own_stream(ranks.rank() // copies, next(_tensors(args)).device):
            return operation(*args, **kwargs)
    given = [
        value if cut is None else _in_whole(value, cut, degree)
        for value, cut in zip((*args, *kwargs.values()), cuts, strict=True)
    ]
    named = dict(zip(kwargs, given[len(args) :], strict=True))
    made = operation(*given[: len(args)], **named)
    return pytree.tree_map_only(
        torch.Tensor, lambda whole: _own(whole, result, degree, ranks.rank()), made
    )


def draw_own(
    node: fx.Node,
    states: Sequence[ShardState | None],
    result: ShardState,
    degree: int,
    group: str,
) -> None:
    """Let a node of a local graph draw for the rank's slice; `states` are those of its arguments."""
    assert isinstance(node.target, torch._ops.OpOverload)
    cuts = tuple(None if one is None else one.cut for one in states)
    node.args = (node.target, cuts, result.cut, degree, group, *node.args)
    node.target = own_draws


@contextmanager
def own_stream(number: int, device: torch.device) -> Generator[None]:
    """In this block `device` draws from stream `number`. Afterwards its generator is as before."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    generator = (
        torch.cuda.default_generators[device.index or 0]
        if device.type == "cuda"
        else torch.default_generator
    )
    before = generator.get_state()
    generator.manual_seed((seed + (number + 1) * _STRIDE) % _SEEDS)
    try:
        yield
    finally:
        generator.set_state(before)


def _in_whole(x: torch.Tensor, cut: Cut, degree: int) -> torch.Tensor:
    """Return a whole value in which the slice stands for those of all ranks."""
    dim, parts, copies = cut
    return joined_slices([x] * (degree // copies), dim, tuple(parts))


def _own(whole: torch.Tensor, cut: Cut, degree: int, rank: int) -> torch.Tensor:
    dim, parts, copies = cut
    slices = own_slices(whole, dim, tuple(parts), degree // copies, rank // copies)
    return torch.cat(list(slices), dim)


def _tensors(args: Sequence[Any]) -> Generator[torch.Tensor]:
    yield from (value for value in args if isinstance(value, torch.Tensor))
