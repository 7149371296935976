"""Where words go: results to stdout, everything else to stderr; files only where they may."""

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from autopart.errors import FileError
from autopart.files import encode


def results_console(*, as_json: bool) -> Console:
    """The console for tables: stdout, or stderr where stdout is kept for JSON."""
    return Console(stderr=as_json, highlight=False)


def print_result(
    summary: msgspec.Struct, *parts: RenderableType, as_json: bool, console: Console | None = None
) -> None:
    """Print the tables of a result, and its JSON document where that was asked for."""
    out = console or results_console(as_json=as_json)
    for part in parts:
        out.print(part)
    if as_json:
        sys.stdout.write(encode(summary).decode())


def say(line: str) -> None:
    """A remark beside the result, on stderr."""
    sys.stderr.write(f"{line}\n")


def warn(warnings: Iterable[str]) -> None:
    """Warnings, one line each, on stderr."""
    for warning in warnings:
        say(f"warning: {warning}")


@contextmanager
def progress_bar(what: str) -> Generator["Bar"]:
    """A progress bar on stderr, gone when the work is done; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        yield Bar(progress, what)


class Bar:
    """Takes `(done, total, what)` and moves the bar."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None)

    def __call__(self, done: int, total: int, what: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, description=what or None)


def check_may_write(path: Path, file_format: str) -> None:
    """Raise FileError where `path` is a folder or a file of another format: we replace our own."""
    if path.is_dir():
        raise FileError(f"{path}: it is a folder; name a file with -o")
    if path.exists() and f'"{file_format}"'.encode() not in _head(path):
        raise FileError(
            f"{path}: it exists and is no {file_format} file; name another file with -o"
        )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1000)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


EXPORT_MARK = b"Written by autopart"


def check_may_replace(path: Path, text: str) -> None:
    """Raise FileError where `path` holds anything but `text` or an earlier export."""
    if path.name.startswith("autopart_") or not path.exists():
        return  # not every format has room for a mark, but the name is one
    if EXPORT_MARK not in _head(path) and path.read_bytes() != text.encode():
        raise FileError(f"{path}: it exists and was not exported by autopart; choose another -o")
