"""Sends between stages with different tensor degrees, against counting them one by one."""

import pytest

from autopart.cost.stage_totals import Traffic
from autopart.stage_degrees.resharding import senders_and_receivers, traffic_between

WHOLE = 48
DEGREES = [(1, 1), (1, 2), (1, 4), (2, 1), (4, 1), (2, 4), (4, 2), (3, 3), (8, 2)]


def slices(degree: int) -> list[set[int]]:
    """The bytes of a value of 48 on each rank, split over the group."""
    size = WHOLE // degree
    return [set(range(size * at, size * (at + 1))) for at in range(degree)]


def busiest(moves: dict[tuple[int, int], set[int]]) -> tuple[int, int]:
    """Bytes and messages on the rank with the most, as a sender or as a receiver."""
    ends = [("from", a) for a, _ in moves] + [("to", b) for _, b in moves]
    own = {end: [m for m in moves if end in (("from", m[0]), ("to", m[1]))] for end in ends}
    return (
        max(sum(len(moves[m]) for m in those) for those in own.values()),
        max(len(those) for those in own.values()),
    )


@pytest.mark.parametrize(("ahead", "behind"), DEGREES)
def test_split_values_go_byte_by_byte_to_the_rank_that_needs_them(ahead: int, behind: int):
    had, needed = slices(ahead), slices(behind)
    moves = {
        (a, b): had[a] & needed[b]
        for a in range(ahead)
        for b in range(behind)
        if had[a] & needed[b]
    }
    assert set(moves) == set(senders_and_receivers(0, ahead, 0, behind))
    one = (
        Traffic(WHOLE // ahead, 1, WHOLE // ahead, 1),
        Traffic(WHOLE // behind, 1, WHOLE // behind, 1),
    )
    found = traffic_between(*one, (ahead, behind), split=True)
    assert (found.bytes, found.tensors) == busiest(moves)
    # Gradients take the same ways back.
    back = {(b, a): own for (a, b), own in moves.items()}
    assert (found.grad_bytes, found.grad_tensors) == busiest(back)


@pytest.mark.parametrize(("ahead", "behind"), DEGREES)
def test_whole_values_go_once_to_each_receiver(ahead: int, behind: int):
    there = {(b * ahead // behind, b): set(range(WHOLE)) for b in range(behind)}
    back = {(a * behind // ahead, a): set(range(WHOLE)) for a in range(ahead)}
    one = Traffic(WHOLE, 1, WHOLE, 1)
    found = traffic_between(one, one, (ahead, behind), split=False)
    assert (found.bytes, found.tensors) == busiest(there)
    assert (found.grad_bytes, found.grad_tensors) == busiest(back)


def test_equal_degrees_send_as_without_resharding():
    one = Traffic(5, 2, 3, 1)
    assert traffic_between(one, one, (4, 4), split=True) == one
