"""Standard streams of a process: closed, full, or in an encoding that lacks a character."""

import codecs
import errno
import io
import os
import select
import sys
from typing import TextIO

from autopart.errors import AutopartError

READER_GONE = 141
"""The exit code that a shell gives a program whose reader is gone (128 + SIGPIPE)."""

_PLAIN = {"…": "...", "µ": "u", "—": "-", "–": "-", "×": "x", "─": "-"}
"""Characters of our own tables and messages, in ASCII."""


class OutputLost(AutopartError):
    """Stdout takes no more: its reader is gone, or its device is full."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout cannot be written: {cause.strerror}")
        if cause.errno == errno.EPIPE:
            self.exit_code = READER_GONE


class _Stream(io.FileIO):
    """A file descriptor. Its first failed write raises OutputLost, or is silent on stderr."""

    def __init__(self, descriptor: int, *, silent: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._silent = silent
        self._lost = False

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        if self._lost:
            return len(data)
        try:
            # None: another process has made the terminal non-blocking, and it takes nothing now.
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            # Buffers repeat the write at the end of the process, where nobody can catch it.
            self._lost = True
            if self._silent:
                return len(data)
            raise OutputLost(error) from None


def open_streams() -> None:
    """Prepare stdout and stderr for what a terminal, a pipe or a full device may do to them."""
    codecs.register_error("autopart", _replaced)
    # A closed descriptor is opened again: the next file would get its number, and our words.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(spare, True)
    os.close(spare)
    sys.stdout = _wrapped(sys.stdout, 1, silent=False)
    sys.stderr = _wrapped(sys.stderr, 2, silent=True)


def _wrapped(stream: TextIO | None, descriptor: int, *, silent: bool) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    raw = _Stream(descriptor, silent=silent)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),  # pyright: ignore[reportArgumentType]
        encoding=encoding,
        errors="autopart",
        line_buffering=silent or raw.isatty(),
    )


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Each character that the encoding lacks in ASCII, as a like one or an escape."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    shown = [_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking]
    return "".join(shown), error.end
