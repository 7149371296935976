"""Local search over orders: actions on the critical path change places.

The critical path of a run goes from its last action back to whatever each action waited for: the one
before it on its rank, or the result of another rank. A shorter step needs another path, so one of its
blocks (actions in a row on one rank, none of which waited for another rank) must be broken up: by an
exchange of two neighbours, or by a move of an action to the front or to the end of its block (Nowicki
and Smutnicki, Management Science 1996). W's, which nothing waits for, are moved behind whole blocks.

Steps go to the first better schedule; where none is left, some random exchanges shake the best one
and the search begins anew. The same seed gives the same schedules.
"""

import random
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from autopart.errors import ScheduleError
from autopart.schedule import Schedule
from autopart.simulator.actions import Actions, Array, F, W
from autopart.solvers.orders.evaluation import Clock, Run, stash_changes

TIGHT = 1e-9
"""Relative difference of two times that are equal but for rounding."""

KICKS = 3
"""Exchanges that shake a schedule."""

GAPS = 3
"""Idle times that a W is tried in."""

PATIENCE = 40
"""Shakes in a row without a better schedule after which a search ends."""


class Move(NamedTuple):
    """The action at place `source` goes to place `target`; places are numbers of actions."""

    source: int
    target: int


class LocalSearch:
    """Search from given schedules, until nothing is better, time is up or no actions are left."""

    def __init__(self, clock: Clock, bound: float, deadline: float | None, seed: int) -> None:
        self.clock, self.task, self.bound = clock, clock.task, bound
        self.deadline = deadline
        self.random = random.Random(seed)
        self.changes: Array = stash_changes(self.task)

    def improve(self, schedule: Schedule) -> tuple[Schedule, float]:
        """The best schedule found from `schedule`, which must fit, and its step time."""
        best = here = self.clock.run(schedule)
        failures = 0
        while failures < PATIENCE and not self._over(best):
            here = self._descend(here)
            failures += 1
            if here.step_time < best.step_time * (1 - TIGHT):
                best, failures = here, 0
            here = self._shaken(best)
        if here.step_time < best.step_time * (1 - TIGHT):
            best = here
        return best.actions.schedule, best.step_time

    def _over(self, best: Run) -> bool:
        done = best.step_time <= self.bound * (1 + TIGHT) or self.clock.actions_left <= 0
        return done or (self.deadline is not None and time.perf_counter() > self.deadline)

    def _descend(self, here: Run) -> Run:
        """First improvement until there is none."""
        found = True
        while found and not self._over(here):
            found = False
            for move in critical_moves(here):
                after = self._try(here, move)
                if after is not None and after.step_time < here.step_time * (1 - TIGHT):
                    here, found = after, True
                    break
                if self._over(here):
                    break
        return here

    def _shaken(self, best: Run) -> Run:
        here = best
        for _ in range(KICKS):
            moves = list(critical_moves(here))
            if moves:
                here = self._try(here, self.random.choice(moves)) or here
        return here

    def _try(self, here: Run, move: Move) -> Run | None:
        """The run after a move; None where it breaks a need, the room, or deadlocks."""
        actions = moved(here.actions, move)
        if actions is None or not self._fits(actions, int(actions.rank[move.source])):
            return None
        try:
            return self.clock.run_actions(actions)
        except ScheduleError:
            return None

    def _fits(self, actions: Actions, rank: int) -> bool:
        if self.task.room_bytes is None:
            return True
        kinds = actions.kind[actions.first[rank] : actions.first[rank + 1]]
        return int(np.cumsum(self.changes[kinds]).max(initial=0)) <= self.task.room_bytes[rank]


def moved(actions: Actions, move: Move) -> Actions | None:
    """The actions with one moved along its rank; None where it would pass what it needs, or what
    needs it, on its own rank."""
    source, target = move
    low, high = min(source, target), max(source, target) + 1
    passed = np.arange(low, high)
    passed = passed[passed != source]
    if _tied(actions, source, passed):
        return None
    count = actions.num_actions
    old = np.arange(count)
    old[low:high] = [*passed, source] if target > source else [source, *passed]
    new = np.arange(count + 2)
    new[old] = np.arange(count)
    rank = int(actions.rank[source])
    first = actions.first[rank]
    order = list(actions.schedule[rank])
    order.insert(target - first, order.pop(source - first))
    schedule = (*actions.schedule[:rank], tuple(order), *actions.schedule[rank + 1 :])
    return actions._replace(
        schedule=schedule,
        kind=actions.kind[old],
        microbatch=actions.microbatch[old],
        need=new[actions.need[old]],
        link=actions.link[old],
    )


def _tied(actions: Actions, source: int, passed: Array) -> bool:
    """Whether an action needs, or is needed by, one of others on its rank: those of its microbatch
    in its stage, F's in the next stages, and B's or I's in those."""
    same = passed[actions.microbatch[passed] == actions.microbatch[source]]
    stage, op = divmod(int(actions.kind[source]), 4)
    for other in actions.kind[same].tolist():
        there, what = divmod(other, 4)
        alike = (op == F) == (what == F) and W not in (op, what)
        if there == stage or (alike and abs(there - stage) == 1):
            return True
    return False


def critical_moves(run: Run) -> Iterator[Move]:
    """Moves that break up a block of the critical path, exchanges at the ends of blocks first."""
    blocks = [block for block in critical_blocks(run) if len(block) > 1]
    for block in blocks:
        yield Move(block[0], block[0] + 1)
        if len(block) > 2:
            yield Move(block[-1], block[-1] - 1)
    for block in blocks:
        yield from _into_gaps(run, block)
        for inner in block[1:-1]:
            yield Move(inner, block[0])
            yield Move(inner, block[-1])
        if len(block) > 2:
            yield Move(block[0], block[-1])
            yield Move(block[-1], block[0])


def _into_gaps(run: Run, block: range) -> Iterator[Move]:
    """W's of a block to before the next idle times of their rank behind it."""
    weights = [i for i in block if run.actions.kind[i] % 4 == W]
    if not weights:
        return
    stop = run.actions.first[int(run.actions.rank[block[0]]) + 1]
    starts, ends = run.times.start, run.times.end
    gaps = [i for i in range(block[-1], stop - 1) if starts[i + 1] > ends[i] * (1 + TIGHT)]
    for weight in weights:
        for gap in gaps[:GAPS]:
            if gap != weight:
                yield Move(weight, gap)


def critical_blocks(run: Run) -> list[range]:
    """The critical path's blocks, the last first: places of actions in a row on one rank, each of
    which starts when the one before ends."""
    needs, rank_starts = run.actions.need.tolist(), set(run.actions.first)
    starts, ends, arrivals = run.times.start, run.times.end, run.times.arrival
    blocks: list[range] = []
    last = at = _last_action(run)
    while True:
        need, start = needs[at], starts[at]
        slack = TIGHT * run.step_time
        if need < run.actions.num_actions and arrivals[need] >= start - slack:
            blocks.append(range(at, last + 1))
            last = at = _queued_first(run, need)
        elif at not in rank_starts and ends[at - 1] >= start - slack:
            at -= 1
        else:
            blocks.append(range(at, last + 1))
            return blocks


def _last_action(run: Run) -> int:
    """The last action of the rank that the end of the step waits for, through the gradient syncs."""
    return run.actions.first[run.last_rank + 1] - 1


def _queued_first(run: Run, sender: int) -> int:
    """The action whose send opened the queue in which the send of `sender` waited for its link."""
    links, times = run.actions.link, run.times
    at = sender
    while times.send_start[at] > times.end[at] + TIGHT * run.step_time:
        before = np.flatnonzero(links[:at] == links[sender])
        at = int(before[-1])
    return at
