"""How much shorter each wait would be if no forward were held back by its order.

A forward Z is held back for h(Z) seconds: those in which its input is there and its rank is idle, but
has a backward to do before it. How much earlier actions could then start follows the arcs of the step.
With `gap` the idle seconds before X, `spare` those between X's input and X, Y the action of another
rank that X awaits and P the one before X on its own:

    shift(X) = min(gap(X) + shift(P), spare(X) + given(Y))
    given(Y) = min(gap(Y) + shift(P of Y) + h(Y), spare(Y) + given(what Y awaits))

`given` is how much earlier X's input could come, with Y not held back; the rank itself is counted on
as it is. The gap before X is then shorter by shift(X) - shift(P). Queues on links are left out.

A rank that has less to do than others would only wait at another place. So no rank is given more such
seconds than the last action of all would end earlier; they are its earliest.
"""

import bisect
import itertools
import math

from autopart.simulator.actions import Actions, F
from autopart.simulator.clock import Times
from autopart.simulator.program import work_order


def capped_times(actions: Actions, times: Times) -> list[float]:
    """For each action the seconds of the gap before it that its wait would be shorter by."""
    gaps, needs = _gaps(actions, times), actions.need.tolist()
    held = _held_back(actions, times, gaps)
    firsts = frozenset(actions.first)
    arrival = [*times.arrival, 0.0]
    given, shift = [0.0] * actions.num_actions + [math.inf], [0.0] * actions.num_actions
    capped = shift.copy()
    for i in work_order(actions):
        start, need = times.start[i], needs[i]
        before = 0.0 if i in firsts else shift[i - 1]
        by_rank = gaps[i] + before
        by_input = start - arrival[need] + given[need] if need < actions.num_actions else start
        if times.reload_end[i] > 0.0:
            by_input = min(by_input, start - times.reload_end[i])
        shift[i] = min(by_rank, by_input)
        given[i] = min(by_rank + held[i], by_input)
        capped[i] = min(max(shift[i] - before, 0.0), gaps[i])
    return _within_gain(actions, capped, _gain(actions, times, shift))


def _gain(actions: Actions, times: Times, shift: list[float]) -> float:
    """How much earlier the last action of all would end."""
    lasts = [stop - 1 for first, stop in itertools.pairwise(actions.first) if stop > first]
    latest = max((times.end[i] for i in lasts), default=0.0)
    return latest - max((times.end[i] - shift[i] for i in lasts), default=0.0)


def _within_gain(actions: Actions, capped: list[float], gain: float) -> list[float]:
    kept: list[float] = []
    for first, stop in itertools.pairwise(actions.first):
        left = gain
        for seconds in capped[first:stop]:
            kept.append(min(seconds, left))
            left -= kept[-1]
    return kept


def _gaps(actions: Actions, times: Times) -> list[float]:
    """Idle seconds of the rank right before each action."""
    gaps: list[float] = []
    for first, stop in itertools.pairwise(actions.first):
        ends = [0.0, *times.end[first : stop - 1]][: stop - first]
        gaps += [s - e for s, e in zip(times.start[first:stop], ends, strict=True)]
    return gaps


def _held_back(actions: Actions, times: Times, gaps: list[float]) -> list[float]:
    """Seconds that each forward is held back; 0 for other actions."""
    held = [0.0] * actions.num_actions
    forward = (actions.kind % 4 == F).tolist()
    needs, arrival = actions.need.tolist(), [*times.arrival, 0.0]
    for first, stop in itertools.pairwise(actions.first):
        starts = times.start[first:stop]
        waits = [0.0 if forward[i] else gaps[i] for i in range(first, stop)]
        upto = [0.0, *itertools.accumulate(waits)]
        for at in range(stop - first):
            if forward[first + at]:
                ready = arrival[needs[first + at]]
                after = bisect.bisect_right(starts, ready)
                if after <= at:
                    # The gap that `ready` falls into counts from there.
                    passed = max(0.0, ready - (starts[after] - waits[after]))
                    held[first + at] = upto[at] - upto[after] - min(passed, waits[after])
    return held
