"""The JSON files: decoded strictly, written whole or not at all.

A file begins with ``format`` and ``version``. A wrong type, a missing key, an unknown key, a NaN
or a negative time raises an error. The error names its place (``$.layers[3].forward_time``).
"""

import errno
import hashlib
import os
import re
import select
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from autopart.errors import FileError
from autopart.records.upgrades import UPGRADES
from autopart.stopping.signals import held_signals

T = TypeVar("T", bound=msgspec.Struct)
Decoded = TypeVar("Decoded")

MOST_FILE_BYTES = 2**28
"""The largest file that is read: 256 MiB. Decoded, it takes a few times as much memory."""
MOST_LEVELS = 32
"""Levels of lists and objects within each other that are named as too deep."""
_PART_BYTES = 2**20
"""Bytes that are read at once."""
PIPE_SECONDS = 2.0
"""Seconds in which the writer of a pipe must begin."""
_MAKERS = {
    "autopart-profile": "autopart profile",
    "autopart-cluster": "autopart probe",
    "autopart-plan": "autopart solve",
    "autopart-calibration": "autopart calibrate",
}
"""For each format the command that makes its files."""
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
"""Texts, and the marks that open and close lists and objects."""


class _Header(msgspec.Struct):
    """The first two keys, by which a file says its kind."""

    format: str = ""
    version: int = 0


def read_file(path: Path, kind: type[T], file_format: str, version: int) -> T:
    """Decode the file at `path` as `kind`, in the given format and version.

    Older versions are upgraded. Raises FileError, with the place in the file, on anything else.
    """
    return decode(read_content(path), kind, file_format, version, where=str(path))


def read_content(path: Path) -> bytes:
    """The bytes of the file at `path`; raises FileError where it is missing or too large."""
    try:
        with os.fdopen(_descriptor(path), "rb") as file:
            content = _head_of(file)
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"{path}: cannot be read: {reason}") from None
    if len(content) > MOST_FILE_BYTES:
        raise FileError(f"{path}: it is too large; at most {MOST_FILE_BYTES >> 20} MiB are read")
    return content


def _head_of(file: BinaryIO) -> bytes:
    """The file's bytes, up to one beyond the limit, with no more memory than they take."""
    parts: list[bytes] = []
    left = MOST_FILE_BYTES + 1
    while left and (part := file.read(min(left, _PART_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _descriptor(path: Path) -> int:
    """Open a file. A pipe must have a writer soon: without one a read would never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISFIFO(mode):
        if not select.select([descriptor], [], [], PIPE_SECONDS)[0]:
            os.close(descriptor)
            raise OSError(errno.EPIPE, "nobody writes into this pipe")
        os.set_blocking(descriptor, True)
    return descriptor


def decode(content: bytes, kind: type[T], file_format: str, version: int, where: str) -> T:
    """Decode JSON `content` as `kind`; errors name it `where`. See `read_file`."""
    header = decode_json(content, _Header, f"{where}: not a whole {file_format} file")
    if header.format != file_format:
        found = f"its format is '{header.format}'" if header.format else "it names no format"
        raise FileError(f"{where}: no {file_format} file: {found}")
    if header.version != version:
        content = _upgraded(content, header, version, where)
    return decode_json(content, kind, where)


def decode_json(content: bytes, kind: type[Decoded], where: str) -> Decoded:
    """Decode JSON as `kind`. Raises FileError, which begins with `where` and names the place."""
    try:
        # Unknown keys are skipped unread, so that the text is checked as a whole.
        if not content.isascii():
            content.decode()
        return msgspec.json.decode(content, type=kind)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileError(f"{where}: byte {error.start} (line {line}) is not UTF-8") from None
    except RecursionError:
        at = _too_deep(content)
        raise FileError(
            f"{where}: lists or objects are nested more than {MOST_LEVELS} deep at byte {at}"
        ) from None
    except msgspec.DecodeError as error:
        raise FileError(f"{where}: {error}") from None


def _too_deep(content: bytes) -> int:
    """The byte at which lists and objects first stand too deep within each other."""
    depth = 0
    for mark in _MARKS.finditer(content):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(mark[0], 0)
        if depth > MOST_LEVELS:
            return mark.start()
    return len(content)


def _upgraded(content: bytes, header: _Header, version: int, where: str) -> bytes:
    """An older file's JSON in the words that `version` uses; raises FileError without an upgrade."""
    readable = [v for v in range(1, version) if (header.format, v) in UPGRADES] + [version]
    if header.version not in readable:
        raise FileError(
            f"{where}: {header.format} version {header.version}; this autopart reads version "
            f"{' and '.join(map(str, readable))}: make the file again with {_MAKERS.get(header.format, 'this autopart')}"
        )
    tree = decode_json(content, dict[str, Any], where)
    for older in range(header.version, version):
        tree = UPGRADES[header.format, older](tree)
    return msgspec.json.encode(tree)


def encode(value: msgspec.Struct) -> bytes:
    """Indented JSON with a newline at the end; equal values give equal bytes."""
    return msgspec.json.format(_compact(value), indent=1) + b"\n"


def _compact(value: object) -> bytes:
    """Compact JSON. Bytes of a file name that are no UTF-8 are written as `\\udcff`."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_in_utf8(msgspec.to_builtins(value)))


def _in_utf8(tree: Any) -> Any:
    """The tree with each text in UTF-8."""
    match tree:
        case str():
            # In an ASCII locale Python takes each byte of a UTF-8 name for such a surrogate.
            try:
                return tree.encode(errors="surrogateescape").decode()
            except UnicodeError:
                return tree.encode(errors="backslashreplace").decode()
        case dict():
            return {_in_utf8(key): _in_utf8(child) for key, child in tree.items()}
        case list() | tuple():
            return [_in_utf8(child) for child in tree]
        case _:
            return tree


def write_record(path: Path, value: msgspec.Struct, file_format: str, version: int) -> None:
    """Write a record's file, whole or not at all; raises FileError where it could not be read again.

    So a figure that no file may have, such as an infinite time, is refused before it is written.
    """
    content = encode(value)
    decode(content, type(value), file_format, version, where=f"{path}: cannot be written")
    write_file(path, content)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; raises FileError.

    A temporary file beside it is written first, then renamed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with held_signals():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".autopart-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                # The umask can only be read by setting it.
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(temporary, 0o666 & ~umask)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None


def content_hash(value: object) -> str:
    """The first 16 hex digits from the SHA-256 sum over `value`'s compact JSON."""
    return hashlib.sha256(_compact(value)).hexdigest()[:16]
