"""Rendezvous sends: which action's rank asks for a message, and whether ranks block each other.

A rendezvous send starts when its receiver asks for it. A rank asks right before the action that
takes the message, or before the overlapped pair that does. Two ranks match their messages by
order alone. So a rank also asks for each earlier message on the same link, even if a later action
takes it.

A send that does not overlap with compute keeps its rank until the receiver asks. Two ranks that
both send first then wait for each other: a deadlock that the orders alone do not have.
"""

import functools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action
from autopart.schedules.encoding import Actions, every_action
from autopart.schedules.rounds import work_order


class Move(NamedTuple):
    """A message crosses its link."""

    giver: int
    """The action that made it."""
    taker: int
    """The action before which its receiver asks for it."""


Event = int | Move
"""An action by its number, or a message."""


def asked_before(actions: Actions) -> dict[int, tuple[int, ...]]:
    """For each action before which its rank asks: the givers of the messages, in link order."""
    links, needs = actions.link.tolist(), actions.need.tolist()
    # Step 1: the messages on each link, in the order of their sends.
    ahead: list[deque[int]] = [deque() for _ in actions.links]
    for giver, link in enumerate(links):
        if link >= 0:
            ahead[link].append(giver)
    # Step 2: an action asks for all messages up to its own that nobody has asked for. A pair's
    # forward asks for the backward too.
    asked: dict[int, tuple[int, ...]] = {}
    asks = {forward + 1: forward for forward in actions.pairs.tolist()}
    for taker, need in enumerate(needs):
        if need >= actions.num_actions:
            continue
        queue, own = ahead[links[need]], list[int]()
        while queue and queue[0] <= need:
            own.append(queue.popleft())
        if own:
            asker = asks.get(taker, taker)
            asked[asker] = (*asked.get(asker, ()), *own)
    return asked


def rendezvous_events(actions: Actions, *, sends_overlap: bool) -> Sequence[Event]:
    """Actions and messages in an order in which each follows all that it waits for.

    One order is priced for many partitions, so the events of the last few orders are kept.

    Raises ScheduleError on a deadlock: of the orders, or of sends that do not overlap compute. The
    latter names the ranks that wait for each other, and the action whose result each hands over.
    """
    return _events(_Same(actions), sends_overlap=sends_overlap)


class _Same:
    """Actions as a key: equal only to themselves, since comparing their arrays takes longer."""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions

    def __hash__(self) -> int:
        return id(self.actions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.actions is other.actions


@functools.lru_cache(maxsize=8)
def _events(same: _Same, *, sends_overlap: bool) -> Sequence[Event]:
    actions = same.actions
    asked = asked_before(actions)
    if not sends_overlap:
        return _Blocking(actions, asked).events()
    # With overlap a send waits for no action that its receiver does not follow anyway.
    events: list[Event] = []
    for action in work_order(actions):
        events += [Move(giver, action) for giver in asked.get(action, ())]
        events.append(action)
    return events


class _Blocking:
    """Ranks that go through their actions and messages; a message needs both its ranks at once."""

    def __init__(self, actions: Actions, asked: dict[int, tuple[int, ...]]) -> None:
        self.actions = actions
        self.rank = actions.rank.tolist()
        taker_of = {giver: taker for taker, givers in asked.items() for giver in givers}
        self.programs: list[list[Event]] = [[] for _ in actions.schedule]
        for action, rank in enumerate(self.rank):
            own = self.programs[rank]
            own += [Move(giver, action) for giver in asked.get(action, ())]
            own.append(action)
            if action in taker_of:
                own.append(Move(action, taker_of[action]))
        self.at = [0] * len(self.programs)

    def events(self) -> list[Event]:
        """All actions and messages, in working order."""
        self._refuse_orders()
        done: list[Event] = []
        ranks = list(range(len(self.programs)))
        while ranks:
            rank = ranks.pop()
            while (event := self._next(rank)) is not None:
                if isinstance(event, Move):
                    # Step 1: a message waits until its other rank stands at it too.
                    other_rank = self._peer(rank, event)
                    if self._next(other_rank) != event:
                        break
                    self.at[other_rank] += 1
                    ranks.append(other_rank)
                # Step 2: an action runs at once, as its messages stand before it.
                self.at[rank] += 1
                done.append(event)
        self._refuse_waits()
        return done

    def _refuse_orders(self) -> None:
        """Raise ScheduleError where the orders deadlock even with buffers."""
        work_order(self.actions)

    def _next(self, rank: int) -> Event | None:
        program, at = self.programs[rank], self.at[rank]
        return program[at] if at < len(program) else None

    def _peer(self, rank: int, move: Move) -> int:
        sender, receiver = self.rank[move.giver], self.rank[move.taker]
        return receiver if rank == sender else sender

    def _refuse_waits(self) -> None:
        """Raise ScheduleError where ranks wait for each other in a ring."""
        blocked = next((r for r in range(len(self.programs)) if self._next(r) is not None), None)
        if blocked is None:
            return
        # Step 1: walk from a blocked rank to the one that it waits for, until one comes again.
        ring: list[int] = []
        rank = blocked
        while rank not in ring:
            ring.append(rank)
            event = self._next(rank)
            assert isinstance(event, Move), "a rank stops at messages only"
            rank = self._peer(rank, event)
        # Step 2: name the ring.
        waits = " and ".join(self._wait(rank) for rank in ring[ring.index(rank) :])
        raise ScheduleError(
            f"sends that wait for their receiver deadlock: {waits}; take --sends buffered, or a "
            "schedule in which ranks take turns, such as gpipe"
        )

    def _wait(self, rank: int) -> str:
        """What a blocked rank waits for, in words."""
        move = self._next(rank)
        assert isinstance(move, Move)
        each: list[Action] = every_action(self.actions.schedule)
        stage, op, microbatch = each[move.giver]
        verb = "sends" if rank == self.rank[move.giver] else "waits for"
        to = "to" if verb == "sends" else "from"
        return f"rank {rank} {verb} {stage}{op}{microbatch} {to} rank {self._peer(rank, move)}"
