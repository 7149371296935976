"""The clock of one step: an action starts when its rank is free and the awaited result is there.

Each rank runs ahead until an action awaits a result that is not made yet. The rank then sleeps
until that result is made. So each action is worked off once, in O(actions).

A move of stash starts when its rank is free for the action beside it, and the action after that one
waits for it. Moves have their links for themselves: no other message goes between partners, and a
rank has one move at a time.
"""

from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from autopart.schedules.encoding import Actions, refuse_deadlock
from autopart.simulator.carried import Carried, begin_of
from autopart.simulator.costs import KindCosts, time_to_result
from autopart.simulator.rendezvous import run_rendezvous
from autopart.simulator.syncs import NO_EFFECTS, Effects


class Times(NamedTuple):
    """Seconds since the step began, one entry for each action."""

    start: Sequence[float]
    """When the action starts."""
    end: Sequence[float]
    """When the action ends; a send that does not overlap compute is included."""
    arrival: Sequence[float]
    """When the result arrives on the rank that awaits it; when compute ends where no rank does."""
    send_start: Sequence[float]
    """When the send starts; when compute ends where nothing is sent."""
    moves: Mapping[int, tuple[float, float]] = MappingProxyType({})
    """For an action beside which stash moves, when the move starts and ends."""


def run(
    actions: Actions,
    costs: KindCosts,
    *,
    sends_overlap: bool,
    rendezvous: bool = False,
    effects: Effects = NO_EFFECTS,
    carried: Carried[float] | None = None,
) -> Times:
    """Run the actions, with a link from each rank to each other rank, first in, first out.

    With `rendezvous` a send waits until its receiver asks; no stash may move then. `effects` are what
    gradient syncs and moves of stash do to the actions. `carried` are the times of the step before,
    none below 0; None: all start at 0.

    Raises ScheduleError, naming the blocked ranks, on a deadlock.
    """
    clock = _run_rendezvous if rendezvous else _run_buffered
    if carried is None:
        carried = nothing_before(actions)
    return clock(actions, costs, effects, carried, sends_overlap=sends_overlap)


def nothing_before(actions: Actions) -> Carried[float]:
    """All ranks and links are free at 0."""
    return Carried([0.0] * len(actions.schedule), [0.0] * len(actions.links))


def _run_buffered(
    actions: Actions,
    costs: KindCosts,
    effects: Effects,
    carried: Carried[float],
    *,
    sends_overlap: bool,
) -> Times:
    count = actions.num_actions
    needs, links = actions.need.tolist(), actions.link.tolist()
    pair, seconds = actions.begins_pair, actions.second if len(actions.pairs) else []
    time = _times(actions, costs, effects, sends_overlap=sends_overlap)
    moving = costs.moving[actions.kind].tolist()
    unknown = -1.0
    # The last two entries stand for `nothing`, which is there from the start, and `never`.
    arrival, send_start = [unknown] * count + [0.0, unknown], [0.0] * count
    start, end = array("d", bytes(8 * count)), array("d", bytes(8 * count))
    link_free, free = list(carried.links), begin_of(carried, effects, max)
    lengths, moves = effects.moves, dict[int, tuple[float, float]]()
    at, stops = list(actions.first[:-1]), actions.first[1:]
    # waiting[i] is the rank that sleeps until action i is done. At most one rank awaits a result.
    waiting, ranks = [-1] * (count + 2), list(range(len(actions.schedule)))
    while ranks:
        now = free[rank := ranks.pop()]
        for i in range(at[rank], stops[rank]):
            # Step 1: if the awaited result is not made yet, the rank sleeps. A pair awaits two.
            need = needs[i]
            there = arrival[need]
            if pair[i] and there >= 0.0 and not 0.0 <= arrival[seconds[i]] <= there:
                need = seconds[i]
                there = arrival[need]
            if there < 0.0:
                waiting[need] = rank
                at[rank] = i
                break
            # Step 2: wait for the move beside the action before, and start the one beside this.
            if lengths:
                now = _past_moves(i, now, lengths, moves)
            # Step 3: start when the rank is free and the result is there; then compute.
            if there > now:
                now = there
            start[i] = now
            now += time[i]
            end[i] = send_start[i] = arrival[i] = now
            # Step 4: send the result. Without overlap the rank is busy with the send. With overlap it
            # queues for its link, into which results go in the order of their sender.
            link = links[i]
            if link >= 0 and not sends_overlap:
                end[i] = now = now + moving[i]
            elif link >= 0:
                send_start[i] = leave = max(link_free[link], now)
                link_free[link] = arrival[i] = leave + moving[i]
            # Step 5: wake the rank that sleeps until this action is done.
            if waiting[i] >= 0:
                ranks.append(waiting[i])
        else:
            at[rank] = stops[rank]
        free[rank] = now
    refuse_deadlock(actions.schedule, [a - f for a, f in zip(at, actions.first, strict=False)])
    return Times(start, end, arrival[:count], send_start, moves)


def _past_moves(
    action: int, now: float, lengths: Mapping[int, float], moves: dict[int, tuple[float, float]]
) -> float:
    """When the rank is free for an action beside no earlier move; notes the move that starts then.

    No move runs beside the last action of a rank, as a backward follows each T.
    """
    if action - 1 in moves:
        now = max(now, moves[action - 1][1])
    if action in lengths:
        moves[action] = now, now + lengths[action]
    return now


def _run_rendezvous(
    actions: Actions,
    costs: KindCosts,
    effects: Effects,
    carried: Carried[float],
    *,
    sends_overlap: bool,
) -> Times:
    assert not effects.moves, "no stash moves where sends wait for their receivers"
    ran = run_rendezvous(
        actions,
        # The messages themselves keep both ranks here, so actions take their compute alone.
        _times(actions, costs, effects, sends_overlap=True),
        costs.moving[actions.kind].tolist(),
        carried._replace(ranks=begin_of(carried, effects, max)),
        sends_overlap=sends_overlap,
    )
    return Times(ran.start, ran.end, ran.arrival, ran.send_start)


def held_until(times: Times) -> dict[int, float]:
    """For each action that a move of stash may delay, when this move is done.

    The move runs beside the action before it on the same rank.
    """
    return {action + 1: end for action, (_, end) in times.moves.items()}


def _times(
    actions: Actions, costs: KindCosts, effects: Effects, *, sends_overlap: bool
) -> list[float]:
    """Seconds from each action's start to its result."""
    times: list[float] = time_to_result(actions, costs, sends_overlap=sends_overlap).tolist()
    for action, seconds in effects.slowed.items():
        times[action] += seconds
    return times


def last_arrivals(actions: Actions, times: Times) -> list[float]:
    """When each link's last message arrives."""
    last = np.zeros(len(actions.links), dtype=np.int64)
    sent = np.flatnonzero(actions.link >= 0)
    last[actions.link[sent]] = (
        sent  # Each link has one sender, and later actions replace earlier ones.
    )
    return [times.arrival[action] for action in last.tolist()]


def last_ends(actions: Actions, times: Times) -> list[float]:
    """When each rank's last action ends; 0 for an idle rank."""
    stops = actions.first[1:]
    return [
        times.end[stop - 1] if order else 0.0
        for stop, order in zip(stops, actions.schedule, strict=True)
    ]
