"""A schedule in working order: each action follows those that it waits for.

A result for another rank lies in a slot until it is read. The slot is then free for a later result,
so few arrays stay in the processor's cache.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.encoding import Actions, encode
from autopart.schedules.rounds import work_order

EMPTY_SLOT = 0
"""The slot that actions without an awaited result read. It is always 0."""


class Step(NamedTuple):
    """One action in working order, with its places in a run's arrays."""

    action: int
    """The action's number in the schedule."""
    rank: int
    kind: int
    """4 x stage + op."""
    row: int
    """The row of its seconds; not its kind in overlapped pairs."""
    slot: int
    """The slot with the awaited result."""
    second: int
    """The slot with the other awaited result of an overlapped pair, on its forward."""
    awaited: bool
    """Whether the action awaits another rank."""
    link: int | None
    """The link that carries the result; None where no other rank needs it."""
    target: int
    """The slot that takes the result."""


class Program(NamedTuple):
    """A schedule in an order in which each action follows those that it waits for."""

    actions: Actions
    steps: tuple[Step, ...]
    num_slots: int

    @property
    def num_actions(self) -> int:
        """Actions on all ranks."""
        return len(self.steps)


def compile_schedule(schedule: Schedule, ranks: StageRanks) -> Program:
    """Put a schedule's actions in working order.

    Raises ScheduleError, naming every blocked rank, on a deadlock.
    """
    actions = encode(schedule, len(ranks))
    order = work_order(actions)
    steps, num_slots = _steps(actions, order)
    return Program(actions, steps, num_slots)


def _steps(actions: Actions, order: Sequence[int]) -> tuple[tuple[Step, ...], int]:
    """The actions in `order` with slots for their results, and how many slots there are."""
    needs, kinds = actions.need.tolist(), actions.kind.tolist()
    links, ranks = actions.link.tolist(), actions.rank.tolist()
    rows, seconds = actions.row.tolist(), actions.second
    for forward in actions.pairs.tolist():
        # The forward awaits all that its backward does.
        needs[forward + 1] = actions.nothing
    slot = [EMPTY_SLOT] * (actions.num_actions + 1)
    fresh, unused = itertools.count(EMPTY_SLOT + 1), list[int]()
    steps: list[Step] = []
    for i in order:
        # Step 1: read the awaited result, which frees its slot.
        need, link = needs[i], links[i]
        read, second = slot[need], slot[seconds[i]]
        unused += [each for each in (read, second) if each != EMPTY_SLOT]
        # Step 2: give the result a slot if another rank awaits it. Freed slots come first.
        if link >= 0:
            slot[i] = unused.pop() if unused else next(fresh)
        sent = link if link >= 0 else None
        awaited = need < actions.num_actions
        steps.append(Step(i, ranks[i], kinds[i], rows[i], read, second, awaited, sent, slot[i]))
    return tuple(steps), next(fresh)
