"""A limit on a search's time, which long computations ask for between their steps.

A search opens a limit with `limited(deadline)`. Deadlines are readings of `time.perf_counter()`,
in seconds. Loops in a search ask `passed(deadline)` and end with their best answer. Loops below
it, in bounds and solvers, call `check_time()`. `GRACE` seconds after the deadline it raises
OutOfTime: the search drops the computation and keeps what it has. Outside of any limit
`check_time()` does nothing, so a check of a plan is never cut short.

Ctrl-C moves all deadlines to now (autopart/stopping/ctrl_c.py).
"""

import contextvars
import math
import time
from collections.abc import Generator
from contextlib import contextmanager

from autopart.stopping.ctrl_c import current_interrupt

MOST_ACTIONS = 2**22
"""The most actions that a search lists for one step; they take about 2 GB."""
SECONDS_PER_ACTION = 2e-6
"""Seconds to list and simulate one action, at least."""
GRACE = 0.5
"""Seconds behind a deadline after which computations are dropped."""


class OutOfTime(Exception):
    """A computation was dropped. The search that opened the limit catches it."""


_hard_deadline = contextvars.ContextVar("hard deadline", default=math.inf)


def passed(deadline: float) -> bool:
    """Whether a deadline has passed, or the user has asked to stop."""
    interrupt = current_interrupt.get()
    if interrupt is not None and interrupt.asked:
        return True
    return time.perf_counter() > deadline


def check_time() -> None:
    """Raise OutOfTime where the innermost limit has passed by more than `GRACE` seconds."""
    latest, interrupt = _hard_deadline.get(), current_interrupt.get()
    if interrupt is not None:
        latest = min(latest, interrupt.asked_at + GRACE)
    if latest < math.inf and time.perf_counter() > latest:
        raise OutOfTime


def check_room(actions: int) -> None:
    """Raise OutOfTime where a step of so many actions would outlast the innermost limit.

    A step with too many actions for the memory counts as outlasting every limit. Outside of any
    limit this does nothing: a plan that is there is simulated whole.
    """
    latest = _hard_deadline.get()
    if latest < math.inf and (
        actions > MOST_ACTIONS or time.perf_counter() + actions * SECONDS_PER_ACTION > latest
    ):
        raise OutOfTime


def time_left(deadline: float) -> float:
    """Seconds until a deadline, at least 0; infinite without one."""
    return 0.0 if passed(deadline) else deadline - time.perf_counter()


def deadline_in(seconds: float) -> float:
    """The deadline in so many seconds from now."""
    return time.perf_counter() + seconds


@contextmanager
def limited(deadline: float) -> Generator[None]:
    """Limit the computations inside; an outer limit stays in force."""
    token = _hard_deadline.set(min(_hard_deadline.get(), deadline + GRACE))
    try:
        yield
    finally:
        _hard_deadline.reset(token)
