"""Progress lines for a job's log, where there is no terminal."""

import time

from autopart.cli.console import say


class ProgressLines:
    """A callable `(done, total, task)` that writes a line to stderr from time to time."""

    def __init__(self, every: float = 10.0) -> None:
        """`every`: least seconds from one line to the next."""
        self._every = every
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, task: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            say(f"step {done} of {total}: {task}")
