"""Output on the terminal: results to stdout, everything else to stderr."""

import json
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, redirect_stdout

import msgspec
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from autopart.records.files import encode
from autopart.report.columns import plain
from autopart.text import visible


def results_console(*, as_json: bool) -> Console:
    """The console for tables: stdout, or stderr where stdout is reserved for JSON.

    Names of layers and files are plain text, also where they look like markup or emoji.
    """
    return Console(stderr=as_json, highlight=False, markup=False, emoji=False)


def print_result(
    summary: msgspec.Struct, *parts: RenderableType, as_json: bool, console: Console | None = None
) -> None:
    """Print a result's tables, and its JSON document under `--json`."""
    out = console or results_console(as_json=as_json)
    for part in parts:
        out.print(plain(part) if isinstance(part, str) else part)
    # Not through rich: it would break long lines, and the document with them.
    if as_json:
        sys.stdout.write(_json_text(encode(summary).decode(), sys.stdout.encoding or "ascii"))


def _json_text(document: str, encoding: str) -> str:
    """A JSON document with escapes for characters that a terminal obeys, or that `encoding` lacks."""

    def kept(character: str) -> bool:
        if character.isprintable() or character == "\n":
            return character.isascii() or bool(character.encode(encoding, "ignore"))
        return False

    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(
        c if kept(c) else json.dumps(c)[1:-1].replace("\x7f", "\\u007f") for c in document
    )


@contextmanager
def stdout_for_json(*, as_json: bool) -> Generator[None]:
    """Send everything that the block prints to stderr, so that stdout holds the document only.

    This covers the model's own prints, and those of its libraries and child processes. Without
    `as_json` nothing changes.
    """
    if not as_json:
        yield
        return
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def say(line: str) -> None:
    """Print a remark on stderr."""
    sys.stderr.write(f"{visible(line)}\n")


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on stderr, one per line."""
    for warning in warnings:
        say(f"warning: {warning}")


@contextmanager
def progress_bar(task: str) -> Generator["Bar"]:
    """A progress bar on stderr that vanishes at the end; silent where stderr is no terminal."""
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeLeft())
    with bars(columns) as progress:
        yield Bar(progress, task)


def bars(columns: Iterable[ProgressColumn]) -> Progress:
    """Columns on stderr that vanish at the end; silent where stderr is no terminal.

    FORCE_COLOR makes no terminal of a file: it is for colours.
    """
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    return Progress(*columns, console=console, transient=True, disable=quiet)


class TimeLeft(ProgressColumn):
    """The time that a task still takes, from the pace of its last steps; empty while it is unknown."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        seconds = task.time_remaining
        return Text("" if seconds is None else f"{minutes(seconds)} left")


def minutes(seconds: float) -> str:
    """Whole seconds as `0:07`, or `1:02:03`."""
    left, second = divmod(round(seconds), 60)
    hour, minute = divmod(left, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


class Bar:
    """A callable that moves the bar: `(done, total, task)`."""

    def __init__(self, progress: Progress, task: str) -> None:
        self._progress = progress
        self._task = progress.add_task(task, total=None)

    def __call__(self, done: int, total: int, task: str = "") -> None:
        named = visible(task) or None
        self._progress.update(self._task, completed=done, total=total, description=named)
