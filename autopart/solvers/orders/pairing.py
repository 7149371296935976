"""Overlapped pairs chosen one by one in given orders, as long as the step becomes shorter.

Two neighbours on a rank, a forward and a whole backward of different microbatches, may be a pair. The
search tries each place in turn: it joins two neighbours, or parts a pair. It keeps what shortens the
step, and ends when no place does. A pair may close a circle of waits: then it is no choice.
"""

from collections.abc import Callable, Iterator

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Order, PairedForward, Schedule
from autopart.stopping.time_limit import passed

SHORTER = 1 - 1e-9
"""A step counts as shorter below this share."""


def with_best_pairs(
    schedule: Schedule, step_of: Callable[[Schedule], float], deadline: float, tries: int
) -> tuple[Schedule, float]:
    """The orders with other pairs, and their step in seconds; at most `tries` steps are simulated.

    `step_of` simulates orders, and raises ScheduleError on a deadlock.
    """
    best, step = schedule, step_of(schedule)
    improved = True
    while improved:
        improved = False
        for rank in range(len(best)):
            for at in range(len(best[rank]) - 1):
                for order in _changed(best[rank], at):
                    if not tries or passed(deadline):
                        return best, step
                    tries -= 1
                    tried = (*best[:rank], order, *best[rank + 1 :])
                    try:
                        seconds = step_of(tried)
                    except ScheduleError:
                        continue
                    if seconds < step * SHORTER:
                        best, step, improved = tried, seconds, True
                        break
    return best, step


def _changed(order: Order, at: int) -> Iterator[Order]:
    """The order with its actions at `at` and behind it joined or parted."""
    one, other = order[at : at + 2]
    before, after = order[:at], order[at + 2 :]
    if isinstance(one, PairedForward):
        yield (*before, Action(*one), other, *after)
        yield (*before, other, Action(*one), *after)
        return
    if isinstance(other, PairedForward) or (at and isinstance(order[at - 1], PairedForward)):
        return
    if {one.op, other.op} == {"F", "B"} and one.microbatch != other.microbatch:
        forward, backward = (one, other) if one.op == "F" else (other, one)
        yield (*before, PairedForward(*forward), backward, *after)
