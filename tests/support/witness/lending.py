"""Stash that ranks lend to each other, as docs/schedules.md says: the witness follows every stash.

L and T stand right before the action that they run beside. A stash is on its rank until the action
beside L is over, and again from the action beside T on. It has a place on the partner from the action
beside L to the end of the one beside T.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

Orders = Sequence[Sequence[tuple[int, str, int]]]


class Beside(NamedTuple):
    """The move that one action has beside it."""

    op: str
    microbatch: int


class Moves(NamedTuple):
    """Orders without L and T, and the moves by the rank and the place of their action."""

    orders: Orders
    beside: Mapping[tuple[int, int], Beside]


def moves_of(orders: Orders) -> Moves:
    """Take the moves out of some orders."""
    plain: list[list[tuple[int, str, int]]] = []
    beside: dict[tuple[int, int], Beside] = {}
    for rank, order in enumerate(orders):
        own: list[tuple[int, str, int]] = []
        for stage, op, microbatch in order:
            if op in "LT":
                beside[rank, len(own)] = Beside(op, microbatch)
            else:
                own.append((stage, op, microbatch))
        plain.append(own)
    return Moves(plain, beside)


def away_at(moves: Moves, rank: int) -> list[int]:
    """The stashes of a rank that are away while each of its actions runs."""
    gone: set[int] = set()
    found: list[int] = []
    for place in range(len(moves.orders[rank])):
        move = moves.beside.get((rank, place))
        if move is not None and move.op == "T":
            gone.remove(move.microbatch)
        found.append(len(gone))
        if move is not None and move.op == "L":
            gone.add(move.microbatch)
    return found


def places_of(moves: Moves, rank: int) -> int:
    """The most places that the stash of a rank takes on its partner."""
    there: set[int] = set()
    most = 0
    for place in range(len(moves.orders[rank])):
        move = moves.beside.get((rank, place))
        if move is not None:
            there.add(move.microbatch)
        most = max(most, len(there))
        if move is not None and move.op == "T":
            there.remove(move.microbatch)
    return most
