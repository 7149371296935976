"""Progress for the log of a job that has no terminal."""

import time

from rich.console import Console


class ProgressLines:
    """Takes `(done, total, what)` and writes a line to stderr now and then: for a job's log."""

    def __init__(self, every: float = 10.0) -> None:
        """`every`: seconds from one line to the next."""
        self._every = every
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, what: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            Console(stderr=True, soft_wrap=True).print(f"step {done} of {total}: {what}")
