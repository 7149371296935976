"""Schedules as plain data: one order of actions for each rank.

An action prints and parses as torch's own letters, `2F0`: stage 2, forward, microbatch 0.
A stage with r ranks runs microbatch m on its rank m mod r: replicas take turns. A schedule without
replicas is the case r = 1. A rank may run several stages.

On each stage a microbatch has F, and either B or both I and W. `encoding` says which results an
action awaits.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from autopart.errors import ScheduleError

Op = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """One operation by one stage on one microbatch.

    F is the forward and B the whole backward. A split backward runs as I, the input gradient, and
    W, the weight gradient.
    """

    stage: int
    op: Op
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.microbatch}"


Order = tuple[Action, ...]
Schedule = tuple[Order, ...]
"""An order for each rank, from rank 0 on; an idle rank has an empty order."""

StageRanks = Sequence[Sequence[int]]
"""The ranks that run each stage: one for each replica."""

_ACTION = re.compile(r"([0-9]{1,18})([FBIW])([0-9]{1,18})")  # numbers of arrays have 64 bits

# A named tuple's own constructor takes three times as long, and a step may have millions of actions.
_new_action: Callable[[tuple[int, Op, int]], Action] = partial(tuple.__new__, Action)


def order_of(stages: Iterable[int], ops: Iterable[Op], microbatches: Iterable[int]) -> Order:
    """An order from the columns of its actions."""
    return tuple(map(_new_action, zip(stages, ops, microbatches, strict=True)))


def parse_action(text: str) -> Action:
    """Read an action such as `2F0`; raises ScheduleError for any other text."""
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ScheduleError(
            f"'{text}' is not an action; write stage, one of F B I W, microbatch: 2F0"
        )
    return Action(int(match[1]), match[2], int(match[3]))  # pyright: ignore[reportArgumentType]


def parse_order(text: str) -> Order:
    """Read actions separated by spaces: `0F0 0F1 0B0 0B1`."""
    words = text.split()
    found = _ACTION.findall(text)
    if list(map("".join, found)) != words:
        # Some word is no action; this names the first one.
        return tuple(map(parse_action, words))
    stages, ops, microbatches = zip(*found, strict=True) if found else ((), (), ())
    return order_of(map(int, stages), ops, map(int, microbatches))


def format_order(order: Order) -> str:
    """The reverse of `parse_order`."""
    return " ".join([f"{stage}{op}{microbatch}" for stage, op, microbatch in order])


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
