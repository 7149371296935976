"""Schedules as plain data: one order of actions for each rank.

An action prints and parses as torch's own letters, `2F0`: stage 2, forward, microbatch 0.
A stage with r ranks runs microbatch m on its rank m mod r: replicas take turns. A schedule without
replicas is the case r = 1. A rank may run several stages.

On each stage a microbatch has F, and either B or both I and W. `encoding` says which results an
action awaits. Under BPipe it may also have L and T, which move its stash (`lending`).

A rank may run a forward and the whole backward after it together, as an overlapped pair. In text a
pair is one word, `(0F1;3B0)OVERLAP_F_B`, as torch writes it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from autopart.errors import ScheduleError

Op = Literal["F", "B", "I", "W", "L", "T"]


class Action(NamedTuple):
    """One operation by one stage on one microbatch.

    F is the forward and B the whole backward. A split backward runs as I, the input gradient, and
    W, the weight gradient. L lends the stash to another rank, and T takes it back. Both run beside
    the next F or B of the order.
    """

    stage: int
    op: Op
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.microbatch}"


class PairedForward(Action):
    """A forward that its rank runs together with the next action in its order: an overlapped pair.

    The next action is the whole backward of another microbatch. As actions, a paired forward and
    the same forward alone are equal: the order alone says what runs together.
    """

    __slots__ = ()


Order = tuple[Action, ...]
Schedule = tuple[Order, ...]
"""An order for each rank, from rank 0 on; an idle rank has an empty order."""

StageRanks = Sequence[Sequence[int]]
"""The ranks that run each stage: one for each replica."""

_ACTION = re.compile(r"([0-9]{1,18})([FBIWLT])([0-9]{1,18})")  # numbers of arrays have 64 bits
OVERLAP = "OVERLAP_F_B"
"""Torch's name for an overlapped pair."""
_PAIR = re.compile(rf"\(([^;()]*);([^;()]*)\){OVERLAP}")

# A named tuple's own constructor takes three times as long, and a step may have millions of actions.
_new_action: Callable[[tuple[int, Op, int]], Action] = partial(tuple.__new__, Action)


def order_of(
    stages: Iterable[int],
    ops: Iterable[Op],
    microbatches: Iterable[int],
    pairs: Sequence[int] = (),
) -> Order:
    """An order from the columns of its actions, with the places at which overlapped pairs begin."""
    order = tuple(map(_new_action, zip(stages, ops, microbatches, strict=True)))
    if not pairs:
        return order
    begins = frozenset(pairs)
    return tuple(
        PairedForward(*action) if at in begins else action for at, action in enumerate(order)
    )


def parse_action(text: str) -> Action:
    """Read an action such as `2F0`; raises ScheduleError for any other text."""
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ScheduleError(
            f"'{text}' is not an action; write stage, one of F B I W L T, microbatch: 2F0"
        )
    return Action(int(match[1]), match[2], int(match[3]))  # pyright: ignore[reportArgumentType]


def parse_order(text: str) -> Order:
    """Read actions separated by spaces: `0F0 0F1 0B0 0B1`, or `0F0 (0F1;0B0)OVERLAP_F_B 0B1`."""
    words = text.split()
    if OVERLAP in text:
        return tuple(itertools.chain.from_iterable(map(_parse_word, words)))
    found = _ACTION.findall(text)
    if list(map("".join, found)) != words:
        # Some word is no action; this names the first one.
        return tuple(map(parse_action, words))
    stages, ops, microbatches = zip(*found, strict=True) if found else ((), (), ())
    return order_of(map(int, stages), ops, map(int, microbatches))


def count_actions(text: str) -> int:
    """The actions in an order's text, without reading them; an overlapped pair has two."""
    return len(text.split()) + text.count(OVERLAP)


def _parse_word(word: str) -> Order:
    """The action or the overlapped pair that a word names."""
    if not word.endswith(OVERLAP):
        return (parse_action(word),)
    match = _PAIR.fullmatch(word)
    both = [parse_action(part) for part in match.groups()] if match else []
    if [action.op for action in both] != ["F", "B"]:
        raise ScheduleError(
            f"'{word}' is no overlapped pair; write a forward and a whole backward: (0F1;3B0){OVERLAP}"
        )
    return (PairedForward(*both[0]), both[1])


def words_of(order: Order) -> list[str]:
    """The actions as text, with one word for each overlapped pair."""
    words = [f"{stage}{op}{microbatch}" for stage, op, microbatch in order]
    return joined_pairs(words, paired_forwards(order))


def joined_pairs(words: list[str], pairs: Sequence[int]) -> list[str]:
    """Words for actions, with the two words at each place of an overlapped pair made one."""
    begins = frozenset(pairs)
    if not begins:
        return words
    return [
        f"({word};{words[at + 1]}){OVERLAP}" if at in begins else word
        for at, word in enumerate(words)
        if at - 1 not in begins
    ]


def format_order(order: Order) -> str:
    """The reverse of `parse_order`."""
    return " ".join(words_of(order))


def paired_forwards(order: Sequence[Action]) -> list[int]:
    """The places in an order at which an overlapped pair begins."""
    kinds = list(map(type, order))
    found: list[int] = []
    at = -1
    for _ in range(kinds.count(PairedForward)):
        at = kinds.index(PairedForward, at + 1)
        found.append(at)
    return found


def first_backwards(order: Sequence[Action]) -> dict[int, int]:
    """For stages in an order the place where their parameter gradients begin to exist: of a B, an I, or a pair.

    A stage without a place begins together with an earlier stage: the gradients of all later ones count then.
    """
    pairs = {at + 1 for at in paired_forwards(order)}
    found: dict[int, int] = {}
    for at, action in enumerate(order):
        if action.op in "BI" and (not found or action.stage < min(found)):
            found[action.stage] = at - (at in pairs)
    return found


def has_pairs(schedule: Schedule) -> bool:
    """Whether some rank runs an overlapped pair."""
    return any(map(paired_forwards, schedule))


def with_pairs(order: Order, ahead: int = 0) -> Order:
    """The order with each forward paired that stands right before a backward of another microbatch.

    The first `ahead` forwards stay alone.
    """
    paired, forwards = list(order), 0
    for at, (one, other) in enumerate(itertools.pairwise(order)):
        forwards += one.op == "F"
        apart = one.microbatch != other.microbatch
        if forwards > ahead and (one.op, other.op) == ("F", "B") and apart:
            paired[at] = PairedForward(*one)
    return tuple(paired)


def without_pairs(order: Order) -> Order:
    """The order with each paired forward alone, right before its backward."""
    return tuple(Action(*action) for action in order)


def dealt(ranks: Sequence[int], rank: int, num_microbatches: int) -> range:
    """The microbatches that `rank` runs on a stage with replicas on `ranks`."""
    return range(ranks.index(rank), num_microbatches, len(ranks))


def microbatches_per_replica(num_microbatches: int, replicas: int, replica: int = 0) -> int:
    """Microbatches of a step that one replica of a stage runs, ceil((m - replica) / r).

    Replicas are counted from 0. The first one runs the most, ceil(m / r).
    """
    return -(-(num_microbatches - replica) // replicas)


def rank_of(ranks: Sequence[int], microbatch: int) -> int:
    """The rank that runs `microbatch` on a stage with replicas on `ranks`."""
    return ranks[microbatch % len(ranks)]


def first_orders(stage_ranks: StageRanks, orders: Schedule, replica: int = 0) -> Schedule:
    """The orders of the first replica or of another one, its ranks and microbatches numbered from 0.

    All stages have equally many replicas, each on ranks of its own.
    """
    count = len(stage_ranks[0])
    ranks = dict.fromkeys(own[replica] for own in stage_ranks)
    return tuple(
        tuple(a._replace(microbatch=(a.microbatch - replica) // count) for a in orders[rank])
        for rank in ranks
    )
