"""Random numbers for a rank's positions, as `own_draws` has them for slices of a tensor group.

Each rank draws from a stream of its own. In a check it puts its chunks into a whole value, draws for the whole,
and takes its chunks of the result.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from autopart.runtime.sharding.context.causal import causal_attention
from autopart.runtime.sharding.context.exchange import Place, own_chunks, put_chunks
from autopart.runtime.sharding.context.states import Rows
from autopart.runtime.sharding.groups import group_named
from autopart.runtime.sharding.own_draws import FIRST_GIVEN, Cut, own_draws, own_stream
from autopart.runtime.transforms.seeded_draws import SeededDraws


def draw_positions(
    operation: Callable[..., Any],
    places: Sequence[Place | None],
    result: Place,
    degree: int,
    group: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Return `operation(*args, **kwargs)` for the rank's positions, with random numbers of its own.

    `places` has where the positions stand in each of `args` and then of `kwargs`, None for whole ones and plain
    values.
    """
    ranks = group_named(group)
    if ranks.is_alone:
        return operation(*args, **kwargs)
    own = ranks.rank()
    if SeededDraws.running is None:
        device = next(x.device for x in args if isinstance(x, torch.Tensor))
        with own_stream(own, device):
            return operation(*args, **kwargs)
    given = [
        value if place is None else _in_whole(value, place, degree, group)
        for value, place in zip((*args, *kwargs.values()), places, strict=True)
    ]
    named = dict(zip(kwargs, given[len(args) :], strict=True))
    made = operation(*given[: len(args)], **named)
    return pytree.tree_map_only(
        torch.Tensor, lambda whole: own_chunks(whole, result, degree, own, group), made
    )


def draw_positions_of_slices(
    operation: Callable[..., Any],
    places: Sequence[Place | None],
    result: Place,
    degree: int,
    group: str,
    of_slices: tuple[Sequence[Cut | None], Cut, int, str],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Return the same for a slice of a tensor group, whose own numbers `own_draws` draws.

    `of_slices` has the slices of the arguments and of the result, the number of the group's ranks and its name. A slice
    is one of the context rank's positions. So the slices are put together first.
    """
    cuts, cut, ranks, tensor_group = of_slices
    own = (operation, places, result, degree, group)
    given = (*(None for _ in own), *cuts)
    return own_draws(draw_positions, given, cut, ranks, tensor_group, *own, *args, **kwargs)


FIRST_GIVEN_OF: dict[object, int] = {
    own_draws: FIRST_GIVEN,
    draw_positions: 5,
    draw_positions_of_slices: 6,
}
"""Place of the operation's first argument among those of each function that draws."""


def draw_own_positions(
    node: fx.Node,
    rows: Sequence[Rows | None],
    result: Rows,
    members: tuple[int, str],
    of_slices: tuple[Any, ...] | None = None,
) -> None:
    """Let a node of a local graph draw for the rank's positions; `rows` are those of its arguments.

    `members` has the number of the ranks and the name of their group. `of_slices` has the arguments of `own_draws` behind its operation, for a slice of a tensor group.
    """
    places = tuple(None if one is None else (one.dim, one.outer) for one in rows)
    own = (places, (result.dim, result.outer), *members)
    if node.target is own_draws:
        operation, cuts, cut, ranks, group, *given = node.args
        node.args = (operation, *own, (cuts, cut, ranks, group), *given)
        node.target = draw_positions_of_slices
    elif node.target is causal_attention:
        node.target = draw_causal_attention
        node.args = (*own, of_slices, *node.args)
    else:
        assert isinstance(node.target, torch._ops.OpOverload)
        slices = () if of_slices is None else (of_slices,)
        node.args = (node.target, *own, *slices, *node.args)
        node.target = draw_positions if of_slices is None else draw_positions_of_slices


def draw_causal_attention(
    places: Sequence[Place | None],
    result: Place,
    degree: int,
    group: str,
    of_slices: tuple[Any, ...] | None,
    *args: Any,
) -> Any:
    """Return `causal_attention(*args)` with random numbers of the rank's own."""
    own = (causal_attention, places, result, degree, group)
    if of_slices is None:
        return draw_positions(*own, *args)
    return draw_positions_of_slices(*own, of_slices, *args)


def _in_whole(x: torch.Tensor, place: Place, degree: int, group: str) -> torch.Tensor:
    """Return a whole value in which the rank's chunks stand for those of all ranks, as an operation may refuse zeros."""
    shape = list(x.shape)
    shape[place[0]] *= degree
    whole = x.new_empty(shape)
    for one in range(degree):
        put_chunks(whole, x, place, degree, one, group)
    return whole
