"""What the ranks say to each other: a schedule's orders with their sends and receives written in.

Messages between two ranks are matched by their order alone, so both sides must post them in the
same order. All orders are lowered together, on every rank alike, along one imagined run in which
each action takes one round: a receive stands on its rank where the matching send stands in that
run. Whoever waits for a message therefore waits for something that stands earlier in the one
common order, and no ring of waiting ranks can form, even if every send blocks until it is
received (or, with receives first, if every send but not every receive does). Stages on the same rank hand their results over without a message.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from autopart.schedule import Action, Op, StageRanks, predecessors, rank_of


class Send(NamedTuple):
    """Hand the results of `action` to the rank that needs them."""

    action: Action
    peer: int


class Receive(NamedTuple):
    """Make room for what `action` needs, and let it arrive."""

    action: Action
    peer: int


class Update(NamedTuple):
    """Step the optimizer of an asynchronous schedule, the `number`-th time from 0."""

    number: int


Event = Action | Send | Receive | Update
Program = tuple[Event, ...]
"""What one rank does in a step, in order."""

Backwards = Mapping[tuple[int, int], Op]
"""Whether (stage, microbatch) runs a whole backward B or begins with its half I."""


Orders = Sequence[Sequence[Action | Update]]
Together = Mapping[int, Collection[int]]
"""By rank the ranks with which it updates, since they hold the same parameters."""


def write_messages(
    orders: Orders,
    stage_ranks: StageRanks,
    together: Together | None = None,
    *,
    receives_first: bool = False,
) -> tuple[Program, ...]:
    """The program of each rank, of orders that `check_schedule` lets pass; they may have updates in
    between, which wait for those of the ranks `together`.

    `receives_first` puts the receives between two actions of a rank before its sends, for a transport on which
    a receive does no more than say that there is room, as with gloo: that word would else stand in the
    connection behind all bytes of the send, and the two directions of a link would take turns.
    """
    programs: list[list[Event]] = [[] for _ in orders]
    backwards = backwards_of(orders)
    for rank, action in _Rounds(orders, len(stage_ranks), backwards, together or {}).run():
        programs[rank].append(action)
        if isinstance(action, Update):
            continue
        target = consumer(action, len(stage_ranks), backwards)
        if target is None:
            continue
        peer = rank_of(stage_ranks[target.stage], target.microbatch)
        if peer != rank:
            programs[rank].append(Send(action, peer))
            programs[peer].append(Receive(target, rank))
    return tuple(tuple(_receives_first(p) if receives_first else p) for p in programs)


def _receives_first(program: Sequence[Event]) -> Iterator[Event]:
    """The receives between two actions before the sends."""
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


def backwards_of(orders: Orders) -> Backwards:
    """How each backward begins."""
    actions = (action for order in orders for action in order if isinstance(action, Action))
    return {(a.stage, a.microbatch): a.op for a in actions if a.op in ("B", "I")}


def consumer(action: Action, num_stages: int, backwards: Backwards) -> Action | None:
    """The action of another stage that waits for the results of `action`."""
    stage, op, m = action
    if op == "F":
        return Action(stage + 1, "F", m) if stage + 1 < num_stages else None
    return Action(stage - 1, backwards[stage - 1, m], m) if op != "W" and stage > 0 else None


def _needs(action: Action, num_stages: int, backwards: Backwards) -> list[Action]:
    """The actions that must have run before `action`."""
    ahead = backwards.get((action.stage + 1, action.microbatch), "B")
    return predecessors(action, num_stages, (ahead,))


class _Rounds:
    """A run of all ranks in which each action takes one round."""

    def __init__(
        self, orders: Orders, num_stages: int, backwards: Backwards, together: Together
    ) -> None:
        self._orders = orders
        self._num_stages = num_stages
        self._backwards = backwards
        self._together = together
        self._at = [0] * len(orders)
        self._done: set[Action] = set()

    def run(self) -> list[tuple[int, Action | Update]]:
        """Every (rank, action) in the order of the run."""
        run: list[tuple[int, Action | Update]] = []
        while ready := self._ready():
            for rank, action in ready:
                self._at[rank] += 1
                if isinstance(action, Action):
                    self._done.add(action)
            run += ready
        assert len(run) == sum(map(len, self._orders)), (
            "the orders deadlock; check_schedule says where"
        )
        return run

    def _ready(self) -> list[tuple[int, Action | Update]]:
        turn = [(rank, self._next(rank)) for rank in range(len(self._orders))]
        return [(rank, action) for rank, action in turn if action and self._can_run(rank, action)]

    def _next(self, rank: int) -> Action | Update | None:
        order, at = self._orders[rank], self._at[rank]
        return order[at] if at < len(order) else None

    def _can_run(self, rank: int, action: Action | Update) -> bool:
        if isinstance(action, Update):
            return all(self._next(other) == action for other in self._together.get(rank, ()))
        return self._done.issuperset(_needs(action, self._num_stages, self._backwards))
