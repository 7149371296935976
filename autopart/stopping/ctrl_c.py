"""Ctrl-C as the user's word to stop a search with its best answer.

A first Ctrl-C moves all deadlines to now (autopart/stopping/time_limit.py). So an interrupted search
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


class Interrupt:
    """Whether the user has asked a search to stop, and when."""

    def __init__(self) -> None:
        self.asked_at = math.inf
        """A reading of `time.perf_counter()`; infinite until the user asks."""

    @property
    def asked(self) -> bool:
        """Whether the user has asked."""
        return self.asked_at < math.inf


current_interrupt = contextvars.ContextVar[Interrupt | None]("interrupt", default=None)
"""The interrupt of the innermost `stop_on_interrupt`; None outside of it."""


@contextmanager
def stop_on_interrupt() -> Generator[Interrupt]:
    """Let a first Ctrl-C end the searches inside, with their best answers.

    The second one raises KeyboardInterrupt, as without this context. A handler that a program has
    installed itself stays in place, and so does Python's own one outside of the main thread.
    """
    outer = current_interrupt.get()
    if outer is not None:
        yield outer
        return
    interrupt = Interrupt()
    token = current_interrupt.set(interrupt)

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
        current_interrupt.reset(token)
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
