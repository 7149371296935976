"""The clock of one step under rendezvous sends, for one partition or for many at once.

A send starts at the latest of three times: its result is made, its link is free, and its receiver
asks (autopart/schedules/rendezvous.py). A receiver asks when it is done with the action before.

- Sends overlap compute: the sender goes on meanwhile.
- Sends do not overlap: both ranks are busy with the send until it ends. The seconds in which a
  sender waits for its receiver count as part of its action.

All times are at least those under buffered sends: the recurrences only have more to wait for. So
each lower bound for buffered sends holds here too (docs/solvers.md).
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from autopart.schedules.encoding import Actions
from autopart.schedules.rendezvous import Event, Move, rendezvous_events
from autopart.simulator.carried import Carried
from autopart.simulator.costs import FloatArray


class Waits:
    """Start, end and sends of each action, in seconds since the step began."""

    def __init__(self, actions: Actions, begin: Carried[float]) -> None:
        count = actions.num_actions
        self.start = [0.0] * count
        self.end = [0.0] * count
        self.arrival = [0.0] * count
        self.send_start = [0.0] * count
        self.free, self.link_free = list(begin.ranks), list(begin.links)


def run_rendezvous(
    actions: Actions,
    compute: Sequence[float],
    moving: Sequence[float],
    begin: Carried[float],
    *,
    sends_overlap: bool,
) -> Waits:
    """Run the actions once.

    `compute` and `moving` have each action's seconds and those of its send. `begin` says when each
    rank and each link may start. Raises ScheduleError on a deadlock.
    """
    made = Waits(actions, begin)
    events = rendezvous_events(actions, sends_overlap=sends_overlap)
    step = _overlapping if sends_overlap else _in_turn
    step(made, actions, events, compute, moving)
    return made


def _overlapping(
    made: Waits,
    actions: Actions,
    events: Sequence[Event],
    compute: Sequence[float],
    moving: Sequence[float],
) -> None:
    ranks, links, needs = actions.rank.tolist(), actions.link.tolist(), actions.need.tolist()
    link_free, count, seconds = made.link_free, actions.num_actions, actions.second
    for event in events:
        if isinstance(event, Move):
            # Step 1: the receiver asks once it is done with the action before.
            giver, taker = event
            link = links[giver]
            leave = max(made.end[giver], made.free[ranks[taker]], link_free[link])
            made.send_start[giver] = leave
            made.arrival[giver] = link_free[link] = leave + moving[giver]
            continue
        # Step 2: the action starts when its message has arrived, an overlapped pair when both have.
        rank = ranks[event]
        now = made.free[rank]
        for need in (needs[event], seconds[event]):
            if need < count:
                now = max(now, made.arrival[need])
        made.start[event] = now
        made.free[rank] = made.end[event] = now + compute[event]
        made.send_start[event] = made.arrival[event] = made.end[event]


def _in_turn(
    made: Waits,
    actions: Actions,
    events: Sequence[Event],
    compute: Sequence[float],
    moving: Sequence[float],
) -> None:
    ranks = actions.rank.tolist()
    begun: dict[int, float] = {}
    for event in events:
        if isinstance(event, Move):
            # Step 1: both ranks are busy from when the later one is ready.
            giver, taker = event
            sender, receiver = ranks[giver], ranks[taker]
            leave = max(made.free[sender], made.free[receiver])
            begun.setdefault(taker, leave)
            made.send_start[giver] = made.arrival[giver] = leave
            made.free[sender] = made.free[receiver] = made.end[giver] = leave + moving[giver]
            continue
        # Step 2: the action starts with its first message.
        rank = ranks[event]
        now: float = made.free[rank]
        made.start[event] = begun.get(event, now)
        made.free[rank] = made.end[event] = now + compute[event]
        made.send_start[event] = made.arrival[event] = made.end[event]


Row = Callable[[int], FloatArray]
"""Gives the seconds of an action or of its send, shape (partitions,)."""


def run_rendezvous_rows(
    actions: Actions,
    compute: Row,
    moving: Row,
    begin: Carried[FloatArray],
    watched: Collection[int],
    *,
    sends_overlap: bool,
) -> tuple[Carried[FloatArray], dict[int, FloatArray]]:
    """When each rank's last action and each link's last send end, and when the `watched` actions do.

    Each array has shape (partitions,). `begin` says when each rank and each link may start. Raises
    ScheduleError on a deadlock.
    """
    events = rendezvous_events(actions, sends_overlap=sends_overlap)
    ranks, links, needs = actions.rank.tolist(), actions.link.tolist(), actions.need.tolist()
    seconds = actions.second
    free, link_free = list(begin.ranks), list(begin.links)
    there: dict[int, FloatArray] = {}
    ends: dict[int, FloatArray] = {}
    for event in events:
        if isinstance(event, Move):
            giver, taker = event
            receiver = ranks[taker]
            if sends_overlap:
                link = links[giver]
                leave = np.maximum(np.maximum(there[giver], free[receiver]), link_free[link])
                there[giver] = link_free[link] = leave + moving(giver)
            else:
                sender = ranks[giver]
                both = np.maximum(free[sender], free[receiver]) + moving(giver)
                free[sender] = free[receiver] = both
                if giver in watched:
                    ends[giver] = both
            continue
        rank = ranks[event]
        now = free[rank]
        for need in (needs[event], seconds[event]) if sends_overlap else ():
            if need in there:
                now = np.maximum(now, there.pop(need))
        free[rank] = now + compute(event)
        if event in watched:
            ends[event] = free[rank]
        if sends_overlap and links[event] >= 0:
            there[event] = free[rank]
    return Carried(free, link_free), ends
