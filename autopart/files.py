"""The JSON files of autopart: decoded strictly, written whole or not at all.

A file opens with ``format`` and ``version``. A wrong type, a missing or an unknown key, a NaN or a
negative time is an error that names the path inside the file (``$.layers[3].forward_time``).
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from autopart.errors import FileError

T = TypeVar("T", bound=msgspec.Struct)


class _Header(msgspec.Struct):
    format: str = ""
    version: int = 0


def read_file(path: Path, kind: type[T], file_format: str, version: int) -> T:
    """Decode `path` as a `kind` whose header says `file_format` and `version`.

    Raises FileError with the place in the file when anything is not as the format says.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    return decode(content, kind, file_format, version, where=str(path))


def decode(content: bytes, kind: type[T], file_format: str, version: int, where: str) -> T:
    """Decode JSON `content` as `kind`; `where` names it in errors."""
    try:
        header = msgspec.json.decode(content, type=_Header)
    except msgspec.DecodeError as error:
        raise FileError(f"{where}: not a whole {file_format} file: {error}") from None
    if header.format != file_format:
        found = f"its format is '{header.format}'" if header.format else "it names no format"
        raise FileError(f"{where}: no {file_format} file: {found}")
    if header.version != version:
        raise FileError(
            f"{where}: {file_format} version {header.version}; this autopart reads version {version}: "
            "make the file again with this autopart"
        )
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise FileError(f"{where}: {error}") from None


def encode(value: msgspec.Struct) -> bytes:
    """JSON of `value`, indented, ending in a newline; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` whole: a temporary file beside it, then a rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None


def content_hash(value: msgspec.Struct) -> str:
    """The first 16 hex digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]
