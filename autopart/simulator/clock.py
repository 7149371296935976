"""The clock of one step: each action starts when its rank is free and what it awaits has arrived."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from autopart.simulator.actions import Actions, refuse_deadlock
from autopart.simulator.costs import KindCosts, time_to_result


class HostMove(NamedTuple):
    """Stash on its way between a rank and its host."""

    rank: int
    action: int
    """The F whose stash leaves, or the B or I whose stash returns."""
    start: float
    end: float


class Times(NamedTuple):
    """When everything happens, in seconds from the start of the step; one entry an action."""

    start: Sequence[float]
    end: Sequence[float]
    arrival: Sequence[float]
    """When its result is on the rank that needs it; its end, where none does."""
    send_start: Sequence[float]
    """When its send starts; its end, where nothing is sent."""
    reload_end: Sequence[float]
    """When the stash that it needs is back from the host; 0 where none was there."""
    host_moves: tuple[HostMove, ...] = ()


def run(actions: Actions, costs: KindCosts, *, sends_overlap: bool) -> Times:
    """Run the actions with links of their own for every pair of ranks and direction, first in, first
    out; raises ScheduleError, naming every blocked rank, on a deadlock."""
    count = actions.num_actions
    needs = actions.need.tolist()
    links = actions.link.tolist()
    time = time_to_result(actions, costs, sends_overlap=sends_overlap).tolist()
    moving = costs.moving[actions.kind].tolist()
    unknown = -1.0
    arrival = [unknown] * count + [0.0, unknown]
    start, end = array("d", bytes(8 * count)), array("d", bytes(8 * count))
    send_start = [0.0] * count
    link_free = [0.0] * len(actions.links)
    free = [0.0] * len(actions.schedule)
    at, stops = list(actions.first[:-1]), actions.first[1:]
    waiting = [-1] * (count + 2)
    ranks = list(range(len(actions.schedule)))
    while ranks:
        rank = ranks.pop()
        now = free[rank]
        for i in range(at[rank], stops[rank]):
            need = needs[i]
            there = arrival[need]
            if there < 0.0:
                waiting[need] = rank
                at[rank] = i
                break
            if there > now:
                now = there
            start[i] = now
            now += time[i]
            end[i] = send_start[i] = arrival[i] = now
            link = links[i]
            if link >= 0 and not sends_overlap:
                end[i] = now = now + moving[i]
            elif link >= 0:
                leave = link_free[link]
                if leave < now:
                    leave = now
                send_start[i] = leave
                link_free[link] = arrival[i] = leave + moving[i]
            if waiting[i] >= 0:
                ranks.append(waiting[i])
        else:
            at[rank] = stops[rank]
        free[rank] = now
    refuse_deadlock(actions.schedule, [a - f for a, f in zip(at, actions.first, strict=False)])
    return Times(start, end, arrival[:count], send_start, [0.0] * count)


def last_ends(actions: Actions, times: Times) -> list[float]:
    """When each rank has done its last action; 0 for an idle rank."""
    stops = actions.first[1:]
    return [
        times.end[stop - 1] if order else 0.0
        for stop, order in zip(stops, actions.schedule, strict=True)
    ]
