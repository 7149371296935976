"""One line on a terminal while a search runs: the best plan so far, and how to take it."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from autopart.units import format_time


@contextmanager
def search_line(objective: str) -> Generator[Callable[[float], None]]:
    """A line on stderr that vanishes at the end; silent where stderr is no terminal.

    It shows the best seconds that the callable was given. `objective` names these seconds.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    best = float("inf")
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("searching; no plan yet", total=None)

        def show(seconds: float) -> None:
            nonlocal best
            if seconds < best:
                best = seconds
                said = f"best {objective} so far {format_time(seconds)}; Ctrl-C takes this plan"
                progress.update(task, description=said)

        yield show
