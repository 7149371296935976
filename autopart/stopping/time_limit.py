"""A limit on a search's time, which long computations ask for between their steps.

A search opens a limit with `limited(deadline)`. Deadlines are readings of `time.perf_counter()`,
in seconds. Loops in a search ask `passed(deadline)` and end with their best answer. Loops below
it, in bounds and solvers, call `check_time()`. `GRACE` seconds after the deadline it raises
OutOfTime: the search drops the computation and keeps what it has. Outside of any limit
`check_time()` does nothing, so a check of a plan is never cut short.

A first Ctrl-C moves all deadlines to now (`stop_on_interrupt`). So an interrupted search
ends like one that runs out of time. A second Ctrl-C raises KeyboardInterrupt.
"""

import contextvars
import math
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

MOST_ACTIONS = 2**22
"""The most actions that a search lists for one step; they take about 2 GB."""
SECONDS_PER_ACTION = 2e-6
"""Seconds to list and simulate one action, at least."""
GRACE = 0.5
"""Seconds behind a deadline after which computations are dropped."""


class OutOfTime(Exception):
    """A computation was dropped. The search that opened the limit catches it."""


class Interrupt:
    """Whether the user has asked a search to stop, and when."""

    def __init__(self) -> None:
        self.asked_at = math.inf
        """A reading of `time.perf_counter()`; infinite until the user asks."""

    @property
    def asked(self) -> bool:
        """Whether the user has asked."""
        return self.asked_at < math.inf


_hard_deadline = contextvars.ContextVar("hard deadline", default=math.inf)
_interrupt = contextvars.ContextVar[Interrupt | None]("interrupt", default=None)


def passed(deadline: float) -> bool:
    """Whether a deadline has passed, or the user has asked to stop."""
    interrupt = _interrupt.get()
    if interrupt is not None and interrupt.asked:
        return True
    return time.perf_counter() > deadline


def check_time() -> None:
    """Raise OutOfTime where the innermost limit has passed by more than `GRACE` seconds."""
    latest, interrupt = _hard_deadline.get(), _interrupt.get()
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


@contextmanager
def stop_on_interrupt() -> Generator[Interrupt]:
    """Let a first Ctrl-C end the searches inside, with their best answers.

    The second one raises KeyboardInterrupt, as without this context. A handler that a program has
    installed itself stays in place, and so does Python's own one outside of the main thread.
    """
    outer = _interrupt.get()
    if outer is not None:
        yield outer
        return
    interrupt = Interrupt()
    token = _interrupt.set(interrupt)

    def ask(_signal: int, _frame: FrameType | None) -> None:
        interrupt.asked_at = time.perf_counter()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        _interrupt.reset(token)
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
