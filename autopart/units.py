"""Where text becomes seconds and bytes, and where they become text again.

Inside autopart times are seconds and sizes are bytes. Bandwidth is decimal (1 GB/s = 1e9 bytes a
second), memory is binary (1 GiB = 2**30 bytes); both spellings are read, each with its own meaning.
"""

import re
from typing import Annotated

import msgspec

from autopart.errors import AutopartError

Seconds = Annotated[float, msgspec.Meta(ge=0.0, description="seconds")]
Bytes = Annotated[int, msgspec.Meta(ge=0, description="bytes")]
Count = Annotated[int, msgspec.Meta(ge=0)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1)]

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_PREFIX = {**_DECIMAL, **_BINARY, "k": 10**3}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*"


def parse_bytes(text: str) -> int:
    """Read a size such as ``80GiB``, ``80 GB`` or ``1024``, in bytes."""
    match = re.fullmatch(_NUMBER + r"([kKMGT]i?)?B?\s*", text)
    if match is None:
        raise AutopartError(f"'{text}' is not a size; write for example 80GiB, 500MB or 1024")
    return round(float(match[1]) * _PREFIX[match[2] or ""])


def parse_bandwidth(text: str) -> float:
    """Read a bandwidth such as ``25GB/s``, ``200Gbit/s`` or ``1e9``, in bytes a second."""
    match = re.fullmatch(_NUMBER + r"([kKMGT]i?)?(B|bit|b)?(?:/s|ps)?\s*", text)
    if match is None or float(match[1]) == 0.0:
        raise AutopartError(
            f"'{text}' is not a bandwidth; write for example 25GB/s, 200Gbit/s or 1e9 (bytes a second)"
        )
    bits = match[3] in ("bit", "b")
    return float(match[1]) * _PREFIX[match[2] or ""] / (8 if bits else 1)


def parse_time(text: str) -> float:
    """Read a time such as ``5us``, ``0.2ms`` or ``1e-6``, in seconds."""
    match = re.fullmatch(_NUMBER + r"(s|ms|us|µs|ns)?\s*", text)
    if match is None:
        raise AutopartError(f"'{text}' is not a time; write for example 5us, 0.2ms or 1.5s")
    return float(match[1]) * _TIME[match[2] or "s"]


def parse_share(text: str) -> float:
    """Read a share such as ``5%`` or ``0.05``, 0 to 1."""
    match = re.fullmatch(_NUMBER + r"(%)?\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0.0 <= share <= 1.0:
        raise AutopartError(
            f"'{text}' is not a share from 0% to 100%; write for example 5% or 0.05"
        )
    return share


def format_bytes(size: float) -> str:
    """Write a size in the largest binary unit that keeps it at 1 or above: ``79.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit always returns")


def format_time(seconds: float) -> str:
    """Write a time with three or four digits: ``812 ms``, ``1.02 s``, ``35.1 µs``."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        scaled = seconds * scale
        if abs(scaled) >= 1.0 or unit == "µs":
            digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
            return f"{scaled:.{digits}f} {unit}"
    raise AssertionError("the last unit always returns")


def format_bandwidth(bandwidth: float) -> str:
    """Write a bandwidth in decimal gigabytes a second: ``25 GB/s``."""
    return f"{bandwidth / 1e9:.3g} GB/s"


def format_share(share: float) -> str:
    """Write a share as per cent: ``12.5 %``."""
    return f"{share * 100:.1f} %"


def time_unit(largest: float) -> tuple[str, float]:
    """The unit, and its seconds, in which a column of times up to `largest` reads best."""
    for unit in ("s", "ms"):
        if largest >= _TIME[unit]:
            return unit, _TIME[unit]
    unit = "µs" if largest > 0 else "ms"
    return unit, _TIME[unit]


def bytes_unit(largest: float) -> tuple[str, float]:
    """The binary unit, and its bytes, in which a column of sizes up to `largest` reads best."""
    for prefix in ("Gi", "Mi", "Ki"):
        if largest >= _BINARY[prefix]:
            return f"{prefix}B", float(_BINARY[prefix])
    return "B", 1.0
