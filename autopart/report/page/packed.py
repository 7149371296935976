"""Arrays and texts in a page: compressed, and written in letters that no HTML parser reads."""

import base64
import gzip
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

TICKS = 2**28
"""Ticks of a step: times are whole ticks, so that equal lengths compress well."""


def compressed(content: bytes) -> str:
    """`content`, compressed, as base64. Equal contents give equal texts."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def compressed_script(name: str, content: bytes) -> str:
    """A `script` element that holds compressed bytes."""
    return f'<script type="application/octet-stream" id="{name}">{compressed(content)}</script>'


class Packed:
    """Named arrays in one block of bytes; a page reads them as typed arrays."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0
        self.places: dict[str, tuple[str, int, int]] = {}
        """For each array its type, the byte at which it starts, and its length."""

    def add(self, name: str, values: Numbers) -> None:
        """Add an array of one of the types that a browser has, in little-endian bytes."""
        little = values.astype(values.dtype.newbyteorder("<"))
        content = little.tobytes()
        self.places[name] = (values.dtype.name, self._at, len(values))
        self._parts += [content, b"\0" * (-len(content) % 8)]
        self._at += len(content) + -len(content) % 8

    @property
    def content(self) -> bytes:
        """All arrays, each at a multiple of 8 bytes."""
        return b"".join(self._parts)


def ticks(times: npt.ArrayLike, makespan: float) -> Numbers:
    """Times in a step as whole ticks."""
    scaled = np.asarray(times, dtype=np.float64) / (makespan or 1.0) * TICKS
    return np.clip(np.rint(scaled), 0, 2**32 - 1).astype(np.uint32)
