"""A schedule's orders with their sends and receives written in.

Two ranks match their messages by order alone, so both must post them in the same order. Every rank
therefore writes all orders down together, along one imagined run in which each action takes one
round. An overlapped pair begins when both its actions can. A receive stands where its send stands in that run.

A wait for a message is thus a wait for something earlier in one common order. So no circle of
waiting ranks can form, even if every send blocks until it is received. With receives first this
holds if sends block and receives do not. Stages on the same rank hand over without a message.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from autopart.schedules.actions import Action, StageRanks
from autopart.schedules.encoding import Actions, encode, every_action, takers


class Send(NamedTuple):
    """Hand the results from `action` to the rank that needs them."""

    action: Action
    """The action that made the results."""
    other_rank: int
    """The rank that receives them."""


class Receive(NamedTuple):
    """Make room for the results that `action` needs, and let them arrive."""

    action: Action
    """The action that needs the results."""
    other_rank: int
    """The rank that sends them."""


class Update(NamedTuple):
    """An optimizer step in an asynchronous schedule."""

    number: int
    """Updates are counted from 0."""
    stage: int
    """The stage whose parameters are stepped."""


Event = Action | Send | Receive | Update
Program = tuple[Event, ...]
"""The events of one rank in a step, in order."""

Orders = Sequence[Sequence[Action | Update]]
"""An order for each rank, with updates where the schedule is asynchronous."""
Together = Mapping[int, Collection[int]]
"""By rank, the ranks that have the same parameters: they update together."""


def write_messages(
    orders: Orders,
    stage_ranks: StageRanks,
    together: Together | None = None,
    *,
    receives_first: bool = False,
) -> tuple[Program, ...]:
    """Write a program for each rank, from orders that pass `check_schedule`.

    L and T stand right before the action that they run beside, behind all receives for it.

    Orders may have updates in between. An update waits until all ranks `together` have reached it.

    `receives_first` puts the receives between two actions before the sends. It is for a transport
    such as gloo, where a receive only tells the sender that there is room. After a send, that word
    would queue behind all its bytes, and the two directions of a link would take turns.
    """
    schedule = tuple(tuple(a for a in order if isinstance(a, Action)) for order in orders)
    actions = encode(schedule, len(stage_ranks))
    each = every_action(actions.schedule)
    beside = {move.beside: move.action for move in actions.moves}
    if beside:
        orders = actions.schedule
    rank_of, taker_of = actions.rank.tolist(), takers(actions)
    programs: list[list[Event]] = [[] for _ in orders]
    for rank, event in _Rounds(orders, actions, together or {}).run():
        if isinstance(event, Update):
            programs[rank].append(event)
            continue
        action = each[event]
        if event in beside:
            programs[rank].append(beside[event])
        programs[rank].append(action)
        taker = taker_of.get(event)
        if taker is not None:
            programs[rank].append(Send(action, rank_of[taker]))
            programs[rank_of[taker]].append(Receive(each[taker], rank))
    return tuple(tuple(_receives_first(p) if receives_first else p) for p in programs)


def _receives_first(program: Sequence[Event]) -> Iterator[Event]:
    """The program with receives before sends, wherever both stand between the same two actions."""
    sends: list[Event] = []
    for event in program:
        if isinstance(event, Send):
            sends.append(event)
            continue
        if not isinstance(event, Receive):
            yield from sends
            sends.clear()
        yield event
    yield from sends


_Numbered = int | Update
"""An action by its number, or an update."""


class _Rounds:
    """One imagined run in which each action takes one round on every rank."""

    def __init__(self, orders: Orders, actions: Actions, together: Together) -> None:
        number = itertools.count()
        self._orders: list[list[_Numbered]] = [
            [event if isinstance(event, Update) else next(number) for event in order]
            for order in orders
        ]
        self._need, self._second = actions.need.tolist(), actions.second
        self._together = together
        self._at = [0] * len(orders)
        # The last two entries stand for `nothing` and `never`.
        self._done = [False] * actions.num_actions + [True, False]

    def run(self) -> list[tuple[int, _Numbered]]:
        """Every (rank, event), in the order of the run."""
        run: list[tuple[int, _Numbered]] = []
        # Step 1: collect the events that are ready as the round begins, earlier ranks first.
        while ready := self._ready():
            # Step 2: run them all. Their results are there from the next round on.
            for rank, event in ready:
                self._at[rank] += 1
                if isinstance(event, int):
                    self._done[event] = True
            run += ready
        assert len(run) == sum(map(len, self._orders)), (
            "the orders deadlock; check_schedule says where"
        )
        return run

    def _ready(self) -> list[tuple[int, _Numbered]]:
        turn = [(rank, self._next(rank)) for rank in range(len(self._orders))]
        return [
            (rank, event)
            for rank, event in turn
            if event is not None and self._can_run(rank, event)
        ]

    def _next(self, rank: int) -> _Numbered | None:
        order, at = self._orders[rank], self._at[rank]
        return order[at] if at < len(order) else None

    def _can_run(self, rank: int, event: _Numbered) -> bool:
        if isinstance(event, Update):
            others = [self._next(other) for other in self._together.get(rank, ())]
            return all(isinstance(o, Update) and o.number == event.number for o in others)
        return self._done[self._need[event]] and self._done[self._second[event]]
