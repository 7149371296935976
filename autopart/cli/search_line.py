"""One line on a terminal while a search runs: the best plan so far, how to take it, and the time left."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.progress import ProgressColumn, Task, TextColumn
from rich.text import Text

from autopart.cli.console import bars, minutes
from autopart.units import format_time


@contextmanager
def search_line(objective: str, limit: float) -> Generator[Callable[[float], None]]:
    """A line on stderr that vanishes at the end; silent where stderr is no terminal.

    It shows the best seconds that the callable was given, which `objective` names. The search ends within
    `limit` seconds.
    """
    best = float("inf")
    with bars((TextColumn("{task.description}"), _AtMost(limit))) as progress:
        task = progress.add_task("searching; no plan yet", total=None)

        def show(seconds: float) -> None:
            nonlocal best
            if seconds < best:
                best = seconds
                said = f"best {objective} so far {format_time(seconds)}; Ctrl-C takes this plan"
                progress.update(task, description=said)

        yield show


class _AtMost(ProgressColumn):
    """The time since the start, and the time that is left at most."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit

    def render(self, task: Task) -> Text:
        """The column's text."""
        elapsed = task.elapsed or 0.0
        left = max(0.0, self._limit - elapsed)
        return Text(f"{minutes(elapsed)}, at most {minutes(left)} left")
