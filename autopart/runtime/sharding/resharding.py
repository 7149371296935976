"""Resharding: which pieces of a value go from which place of one tensor group to which place of another.

A value that crosses a cut between stages with different tensor degrees has a state on each side. Each place
of a group holds some ranges of the whole value along one dimension: all of it where the value is
replicated, its own slice where the value is sharded. A place that needs a range takes it

    from one place, where the other side holds whole values: place j of t' from place floor(j t / t') of t
    from each place whose slice meets the range, where the other side holds slices

Gradients go back the same way with the sides changed over. The gradient of a replicated value is whole on
each place, because readers that differ sum it (`collectives.copy`). The gradient of a slice is that of the
slice. Only where several places hold one slice is it a part: such values are refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from autopart.errors import PlanError
from autopart.runtime.sharding.states import REPLICATED, ShardState


class Side(NamedTuple):
    """A value on one side of a cut."""

    state: ShardState
    degree: int

    @property
    def is_whole(self) -> bool:
        """Whether each place holds all of the value."""
        return self.degree == 1 or self.state == REPLICATED


class Piece(NamedTuple):
    """A part of one value that one place sends to another; offsets and lengths count along `dim`."""

    sender: int
    receiver: int
    dim: int
    start: int
    """Where the part begins in the sender's tensor."""
    place: int
    """Where it begins in the receiver's tensor."""
    length: int | None
    """None where the sender's whole tensor is the receiver's."""

    def of_sender(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of the sender's tensor, contiguous."""
        return self._part(tensor, self.start).contiguous()

    def of_receiver(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of the receiver's tensor: a view."""
        return self._part(tensor, self.place)

    def _part(self, tensor: torch.Tensor, start: int) -> torch.Tensor:
        return tensor if self.length is None else tensor.narrow(self.dim, start, self.length)


def pieces(name: str, sender: Side, receiver: Side, whole: Sequence[int]) -> tuple[Piece, ...]:
    """The pieces in which a value with shape `whole` goes over a cut, in one order on all places.

    Raises PlanError where the sides are cut along two dimensions, or where a side holds partial values.
    """
    if sender == receiver:
        return tuple(Piece(place, place, 0, 0, 0, None) for place in range(sender.degree))
    dim = _dimension(name, sender, receiver)
    size = whole[dim] if whole else 1
    held = [_ranges(sender, place, size) for place in range(sender.degree)]
    found: list[Piece] = []
    for place in range(receiver.degree):
        # A whole value has one sender; of slices each may have a part.
        first = place * sender.degree // receiver.degree
        if sender.is_whole and receiver.is_whole:
            found.append(Piece(first, place, 0, 0, 0, None))
            continue
        places = [first] if sender.is_whole else range(sender.degree)
        for one in places:
            found += _met(one, place, dim, held[one], _ranges(receiver, place, size))
    return tuple(found)


def _dimension(name: str, sender: Side, receiver: Side) -> int:
    cut = [side.state for side in (sender, receiver) if not side.is_whole]
    if any(state.kind == "partial" or state.copies > 1 for state in cut):
        raise PlanError(
            f"'{name}' crosses a cut between tensor degrees {sender.degree} and {receiver.degree} in parts that "
            "places share; give both stages one degree, or move the cut to the border of a block"
        )
    dims = {state.dim for state in cut}
    if len(dims) > 1:
        raise PlanError(
            f"'{name}' is split along dimensions {sorted(dims)} on the two sides of a cut between tensor degrees "
            f"{sender.degree} and {receiver.degree}; move the cut to the border of a block"
        )
    return dims.pop() if dims else 0


def _ranges(side: Side, place: int, size: int) -> list[tuple[int, int]]:
    """The ranges of the whole value that one place holds, in the order of its tensor: start and length."""
    if side.is_whole:
        return [(0, size)]
    found: list[tuple[int, int]] = []
    start = 0
    for part in side.state.parts or (size,):
        length = part // side.degree
        found.append((start + place * length, length))
        start += part
    return found


def _met(
    sender: int,
    receiver: int,
    dim: int,
    held: Sequence[tuple[int, int]],
    needed: Sequence[tuple[int, int]],
) -> list[Piece]:
    """The pieces that one place can give another: where the ranges of both meet."""
    found: list[Piece] = []
    place = 0
    for begin, length in needed:
        start = 0
        for at, size in held:
            low, high = max(begin, at), min(begin + length, at + size)
            if low < high:
                piece = (start + low - at, place + low - begin, high - low)
                found.append(Piece(sender, receiver, dim, *piece))
            start += size
        place += length
    return found
