"""Pieces of values between tensor groups of different sizes, against slices of whole tensors."""

import itertools
from collections.abc import Sequence

import pytest
import torch

from autopart.errors import PlanError
from autopart.runtime.sharding.collectives import own_slices
from autopart.runtime.sharding.resharding import Side, pieces
from autopart.runtime.sharding.states import PARTIAL, REPLICATED, ShardState, sequence, sharded

WHOLE = torch.arange(2.0 * 12 * 3).reshape(2, 12, 3)
PARTS = (6, 6)
"""The dimension 12 as two parts, each of which is sharded."""


def on_places(side: Side, whole: torch.Tensor) -> list[torch.Tensor]:
    """What each place of a group holds of a value."""
    state = side.state
    if side.degree == 1 or state == REPLICATED:
        return [whole.clone() for _ in range(side.degree)]
    return [
        torch.cat(own_slices(whole, state.dim, state.parts, side.degree, place), state.dim)
        for place in range(side.degree)
    ]


def delivered(sender: Side, receiver: Side, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What each place of the receiving group has when all pieces have arrived."""
    found = [torch.full_like(own, torch.nan) for own in on_places(receiver, WHOLE)]
    for piece in pieces("x", sender, receiver, WHOLE.shape):
        piece.of_receiver(found[piece.receiver]).copy_(piece.of_sender(given[piece.sender]))
    return found


def sides() -> list[Side]:
    states = (REPLICATED, sequence(1), sharded(1, PARTS))
    degrees = {0: (1, 2, 3, 4), 1: (2, 3, 4), 2: (2, 3)}
    return [Side(state, t) for at, state in enumerate(states) for t in degrees[at]]


@pytest.mark.parametrize(("sender", "receiver"), list(itertools.product(sides(), repeat=2)))
def test_each_place_gets_its_own_part_and_each_element_once(sender: Side, receiver: Side):
    given = on_places(sender, WHOLE)
    found = delivered(sender, receiver, given)
    for own, wanted in zip(found, on_places(receiver, WHOLE), strict=True):
        assert torch.equal(own, wanted)
    moved = pieces("x", sender, receiver, WHOLE.shape)
    elements = sum(piece.of_sender(given[piece.sender]).numel() for piece in moved)
    assert elements == sum(own.numel() for own in found)


def test_of_whole_values_only_as_many_places_send_as_receive():
    whole = [Side(REPLICATED, degree) for degree in (4, 2)]
    assert [(p.sender, p.receiver) for p in pieces("x", *whole, (2, 3))] == [(0, 0), (2, 1)]
    back = pieces("x", *reversed(whole), (2, 3))
    assert [(p.sender, p.receiver) for p in back] == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_slices_are_joined_from_several_places_and_cut_for_several():
    two, four = Side(sequence(1), 2), Side(sequence(1), 4)
    found = [(p.sender, p.receiver, p.start, p.length) for p in pieces("x", two, four, (2, 8, 3))]
    assert found == [(0, 0, 0, 2), (0, 1, 2, 2), (1, 2, 0, 2), (1, 3, 2, 2)]
    joined = [(p.sender, p.receiver, p.place) for p in pieces("x", four, two, (2, 8, 3))]
    assert joined == [(0, 0, 0), (1, 0, 2), (2, 1, 0), (3, 1, 2)]


@pytest.mark.parametrize(
    ("state", "other", "said"),
    [
        (PARTIAL, REPLICATED, "in parts that places share"),
        (ShardState("sharded", 1, (), copies=2), REPLICATED, "in parts that places share"),
        (sequence(1), sharded(2), r"split along dimensions \[1, 2\]"),
    ],
)
def test_values_that_cannot_cross_are_refused_in_one_line(
    state: ShardState, other: ShardState, said: str
):
    with pytest.raises(PlanError, match=said):
        pieces("x", Side(state, 2), Side(other, 4), (2, 8, 4))
