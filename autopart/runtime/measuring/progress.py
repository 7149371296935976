"""Progress in a long piece of work, for a caller that displays it."""

from typing import Protocol


class ProgressListener(Protocol):
    """Receives the progress."""

    def __call__(self, done: int, total: int, name: str, /) -> None:
        """Receive that `done` of `total` steps are finished and that step `name` begins."""
        ...


class StepCounter:
    """Counts steps. The total may grow during the work."""

    def __init__(self, progress: ProgressListener | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = -1

    def next(self, name: str) -> None:
        """Finish the previous step and begin step `name`."""
        self._done += 1
        self._tell(name)

    def add(self, number: int) -> None:
        """Raise the total by `number` steps."""
        self._total += number

    def finish(self) -> None:
        """Finish all steps."""
        self._done = self._total
        self._tell("")

    def _tell(self, name: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, name)
