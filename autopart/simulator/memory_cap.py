"""The memory cap: the seconds that waits would be shorter if no order delayed a forward.

A forward Z is delayed for h(Z) seconds: its input is there and its rank is idle, but a backward
stands before it. Without these delays, actions could start earlier. Symbols for an action X:

    P          the action before X on its own rank
    Y          the action on another rank that X awaits
    gap(X)     idle seconds right before X, without those in which a move of stash delays it
    spare(X)   seconds from when X's input arrives until X starts
    shift(X)   seconds that X could start earlier
    given(Y)   seconds that Y's result could come earlier if Y itself were not delayed

    shift(X) = min(gap(X) + shift(P), spare(X) + given(Y))
    given(Y) = min(gap(Y) + shift(P') + h(Y), spare(Y) + given(Y'))

P' is the action before Y on its rank, and Y' the action that Y awaits. An overlapped pair awaits two:
the smaller of both limits counts. So X's own rank keeps its
order, and only its input comes earlier. The gap before X is then shorter by shift(X) - shift(P).
Queues on links are left out.

A rank with less work than others would only wait at another place. So no rank gets more such
seconds than the very last action would gain. It gets its earliest ones.
"""

import bisect
import itertools
import math

from autopart.schedules.encoding import Actions, F
from autopart.schedules.rounds import work_order
from autopart.simulator.clock import Times, held_until


def capped_times(actions: Actions, times: Times) -> list[float]:
    """The memory-cap seconds in the gap before each action."""
    gaps, needs, seconds = _gaps(actions, times), actions.need.tolist(), actions.second
    for forward in actions.pairs.tolist():
        needs[forward + 1] = actions.nothing
    delays = _delays(actions, times, gaps)
    firsts = frozenset(actions.first)
    arrival = [*times.arrival, 0.0]
    given, shift = [0.0] * actions.num_actions + [math.inf], [0.0] * actions.num_actions
    capped = shift.copy()
    # In the order of work, the actions that i follows are done before i.
    for i in work_order(actions):
        start = times.start[i]
        before = 0.0 if i in firsts else shift[i - 1]
        # Step 1: the two limits of the recurrence. An action without input could start at 0.
        by_rank = gaps[i] + before
        by_input = start
        for need in (needs[i], seconds[i]):
            if need < actions.num_actions:
                by_input = min(by_input, start - arrival[need] + given[need])
        # Step 2: shift and given, and the part of the gap that the shift removes.
        shift[i] = min(by_rank, by_input)
        given[i] = min(by_rank + delays[i], by_input)
        capped[i] = min(max(shift[i] - before, 0.0), gaps[i])
    return _within_gain(actions, capped, _gain(actions, times, shift))


def _gain(actions: Actions, times: Times, shift: list[float]) -> float:
    """The seconds that the very last action would end earlier."""
    lasts = [stop - 1 for first, stop in itertools.pairwise(actions.first) if stop > first]
    latest = max((times.end[i] for i in lasts), default=0.0)
    return latest - max((times.end[i] - shift[i] for i in lasts), default=0.0)


def _within_gain(actions: Actions, capped: list[float], gain: float) -> list[float]:
    """Each rank's earliest seconds, at most `gain` together."""
    kept: list[float] = []
    for first, stop in itertools.pairwise(actions.first):
        left = gain
        for seconds in capped[first:stop]:
            kept.append(min(seconds, left))
            left -= kept[-1]
    return kept


def _gaps(actions: Actions, times: Times) -> list[float]:
    """The idle seconds right before each action, from when no move of stash delays it any more."""
    gaps: list[float] = []
    held = held_until(times)
    for first, stop in itertools.pairwise(actions.first):
        ends = [0.0, *times.end[first : stop - 1]][: stop - first]
        if held:
            ends = [max(end, held.get(first + at, 0.0)) for at, end in enumerate(ends)]
        gaps += [s - e for s, e in zip(times.start[first:stop], ends, strict=True)]
    return gaps


def _delays(actions: Actions, times: Times, gaps: list[float]) -> list[float]:
    """The seconds h(Z) that each forward is delayed; 0 for other actions."""
    delays = [0.0] * actions.num_actions
    forward = (actions.kind % 4 == F).tolist()
    needs, arrival = actions.need.tolist(), [*times.arrival, 0.0]
    for first, stop in itertools.pairwise(actions.first):
        # upto[n] sums the gaps before backwards among the rank's first n actions.
        starts = times.start[first:stop]
        waits = [0.0 if forward[i] else gaps[i] for i in range(first, stop)]
        upto = [0.0, *itertools.accumulate(waits)]
        for at in range(stop - first):
            if forward[first + at]:
                # Actions from `after` up to the forward start later than its input arrives.
                ready = arrival[needs[first + at]]
                after = bisect.bisect_right(starts, ready)
                if after <= at:
                    # If `ready` falls into the gap before `after`, only the rest of that gap
                    # counts.
                    passed = max(0.0, ready - (starts[after] - waits[after]))
                    delays[first + at] = upto[at] - upto[after] - min(passed, waits[after])
    return delays
