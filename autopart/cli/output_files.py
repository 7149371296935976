"""Output files: a file of another program is never overwritten."""

from collections.abc import Callable
from pathlib import Path

from autopart.errors import FileError

EXPORT_MARK = b"Written by autopart"
"""The text near the top of every exported file whose format has comments."""


def check_may_write(path: Path, file_format: str) -> None:
    """Raise FileError where `path` is a folder or a file in another format.

    Files in `file_format` are our own and may be replaced.
    """
    if _is(path, Path.is_dir):
        raise FileError(f"{path}: it is a folder; name a file with -o")
    _refuse_special(path)
    if _is(path, Path.exists) and f'"{file_format}"'.encode() not in _head(path):
        raise FileError(
            f"{path}: it exists and is no {file_format} file; name another file with -o"
        )


def _refuse_special(path: Path) -> None:
    """Raise FileError where `path` is a device or a pipe. Reading one might never end."""
    if _is(path, Path.exists) and not path.is_file():
        raise FileError(f"{path}: it is no ordinary file; choose another -o")


def _is(path: Path, test: Callable[[Path], bool]) -> bool:
    """The answer of a test; raises FileError for a path that no file may have."""
    try:
        return test(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"{path}: cannot be written: {reason}") from None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1000)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


def check_may_replace(path: Path, text: str) -> None:
    """Raise FileError where `path` holds anything but `text` or an earlier export."""
    if path.name.startswith("autopart_") or not _is(path, Path.exists):
        return  # Formats without comments cannot carry the mark; the name marks them.
    _refuse_special(path)
    if EXPORT_MARK not in _head(path) and path.read_bytes() != text.encode():
        raise FileError(f"{path}: it exists and was not exported by autopart; choose another -o")
