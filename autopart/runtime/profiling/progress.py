"""How far a long piece of work is, for whoever wants to draw it."""

from typing import Protocol


class Progress(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """`done` of `total` steps are finished, and `what` comes now."""
        ...


class Steps:
    """Counts the steps of one piece of work, of which more may turn up on the way."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = -1

    def next(self, what: str) -> None:
        """The step before is finished, and `what` comes now."""
        self._done += 1
        self._tell(what)

    def add(self, number: int) -> None:
        """There are `number` more steps than was thought."""
        self._total += number

    def finish(self) -> None:
        """All steps are finished."""
        self._done = self._total
        self._tell("")

    def _tell(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, what)
