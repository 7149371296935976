"""Stash that waits in another rank's memory: the actions L and T.

Symbols   k    ranks of one pipeline, with one stage each
          r    a rank of its first half; its partner is rank k - 1 - r
          L    rank r sends a microbatch's stash to its partner
          T    rank r takes it back, before the microbatch's backward

L and T compute nothing. Each runs on a thread of its own, beside the action that follows it in the
order. It starts when the rank comes to that action, before the action awaits any input. The action
after that one waits until the move is done. So a rank has at most one move under way, and its bytes
at each action follow from the order alone:

    the action beside L   the stash is still here
    up to the last action before the one beside T   the stash is away
    the action beside T   the stash has its room again

The partner's own actions wait for no move. It makes room for a stash once it has one place free, in
as many places as its lender ever fills, and keeps these places for the whole step.
"""

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Order, Schedule, StageRanks

MOVES = "LT"
"""The letters of actions that move stash."""


class StashMove(NamedTuple):
    """One L or T."""

    rank: int
    """The rank whose stash moves."""
    action: Action
    beside: int
    """The number of the action that it runs beside, counted over all ranks without L and T."""


class Lent(NamedTuple):
    """One microbatch's stash that is away for a while; places count a rank's actions without L and T."""

    stage: int
    microbatch: int
    beside_lend: int
    """The place of the action beside L."""
    beside_take: int
    """The place of the action beside T."""


def partner_stage(stage: int, num_stages: int) -> int:
    """The stage whose ranks lend to, or borrow from, those of `stage`."""
    return num_stages - 1 - stage


def computing(schedule: Schedule) -> Schedule:
    """The orders without L and T: the same tuple where there are none."""
    letters = ["".join(map(operator.itemgetter(1), order)) for order in schedule]
    if not any(letter in own for own in letters for letter in MOVES):
        return schedule
    return tuple(tuple(a for a in order if a.op not in MOVES) for order in schedule)


def stash_moves(schedule: Schedule) -> tuple[StashMove, ...]:
    """Every L and T, rank after rank, each with the action that it runs beside."""
    found: list[StashMove] = []
    number = 0
    for rank, order in enumerate(schedule):
        for action in order:
            if action.op in MOVES:
                found.append(StashMove(rank, action, number))
            else:
                number += 1
    return tuple(found)


def lent_by(order: Order) -> tuple[Lent, ...]:
    """The stash that one rank's order lends, in the order of L; raises KeyError for a T without L."""
    begun: dict[tuple[int, int], int] = {}
    ended: dict[tuple[int, int], int] = {}
    at = 0
    for stage, op, microbatch in order:
        if op == "L":
            begun[stage, microbatch] = at
        elif op == "T":
            ended[stage, microbatch] = at
        else:
            at += 1
    return tuple(Lent(*key, begin, ended[key]) for key, begin in begun.items())


def away(moves: Iterable[StashMove], num_actions: int) -> list[int]:
    """The stashes of each action's rank that are away while it runs; actions as they are numbered."""
    change = [0] * (num_actions + 2)
    for _, action, beside in moves:
        # From the action after the one beside L, up to the one before that beside T.
        if action.op == "L":
            change[beside + 1] += 1
        else:
            change[beside] -= 1
    return list(itertools.accumulate(change))[:num_actions]


def places_filled(order: Order) -> int:
    """The most places that one rank's stash takes on its partner: from each L to the end of its T."""
    change: dict[int, int] = {}
    for lent in lent_by(order):
        change[lent.beside_lend] = change.get(lent.beside_lend, 0) + 1
        change[lent.beside_take + 1] = change.get(lent.beside_take + 1, 0) - 1
    now = most = 0
    for at in sorted(change):
        now += change[at]
        most = max(most, now)
    return most


def places_by_stage(schedule: Schedule, stage_ranks: StageRanks) -> tuple[int, ...]:
    """For each stage, the most places that its partner's stash takes on one of its ranks."""
    filled = [
        max((places_filled(schedule[rank]) for rank in ranks), default=0) for ranks in stage_ranks
    ]
    return tuple(filled[::-1])


def partners(stage_ranks: StageRanks) -> dict[int, int]:
    """For each rank with a stage the rank that it lends to or borrows from, for one stage per rank."""
    return {
        rank: other
        for stage, ranks in enumerate(stage_ranks)
        for rank, other in zip(
            ranks, stage_ranks[partner_stage(stage, len(stage_ranks))], strict=True
        )
    }


def check_lending(schedule: Schedule, stage_ranks: StageRanks) -> None:
    """Raise ScheduleError, naming the action, unless stash is lent and taken back as it may be.

    The orders without L and T must be complete. Only stages of the first half lend, with as many
    ranks as their partners. L follows its F, and its T begins after the action beside L and is over
    before B.
    """
    if computing(schedule) is schedule:
        return
    stages = len(stage_ranks)
    for rank, order in enumerate(schedule):
        for problem in _problems(order, rank, stage_ranks, stages // 2):
            raise ScheduleError(f"rank {rank} {problem}")


def _problems(order: Order, rank: int, stage_ranks: StageRanks, half: int) -> Iterator[str]:
    """What is wrong with one rank's L and T, in words."""
    place: dict[Action, int] = {}
    beside: dict[int, Action] = {}
    at = 0
    for action in order:
        if action in place:
            yield f"runs {action} twice"
        place[action] = at
        if action.op not in MOVES:
            at += 1
        elif action.stage >= half:
            yield f"runs {action}, and only the first half of the stages lends stash"
        elif rank not in stage_ranks[action.stage]:
            yield f"runs {action}, which is not its own"
        elif sum(rank in ranks for ranks in stage_ranks) > 1:
            yield f"runs {action}, and a rank that lends has one stage"
        elif len(stage_ranks[action.stage]) != len(stage_ranks[-1 - action.stage]):
            yield f"runs {action}, and its partner's stage has another number of ranks"
        elif at in beside:
            yield f"moves two stashes beside one action: {beside[at]} and {action}"
        else:
            beside[at] = action
    for action in beside.values():
        yield from _misplaced(action, place, beside, at)


def _misplaced(
    action: Action, place: dict[Action, int], beside: dict[int, Action], count: int
) -> Iterator[str]:
    """What is wrong with the place of one L or T."""
    stage, op, microbatch = action
    forward, backward = Action(stage, "F", microbatch), Action(stage, "B", microbatch)
    lend, take = Action(stage, "L", microbatch), Action(stage, "T", microbatch)
    if lend not in place or take not in place:
        yield f"runs {action} without {take if op == 'L' else lend}"
    elif backward not in place:
        yield f"runs {action}, and only whole backwards take stash back"
    elif op == "L" and place[lend] <= place.get(forward, count):
        yield f"runs {lend} before {forward}"
    elif op == "T" and place[take] <= place[lend]:
        yield f"runs {take} before the action beside {lend} is over"
    elif op == "T" and place[take] >= place[backward]:
        yield f"runs {take} too late: it must be over before {backward}"
