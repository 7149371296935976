"""Text to seconds and bytes, and back.

Inside autopart times are seconds and sizes are bytes. Bandwidth is decimal (1 GB/s = 1e9 bytes per
second), memory is binary (1 GiB = 2**30 bytes). Both spellings are read, each with its own meaning.
"""

import re
from typing import Annotated, Any, Protocol, Self, TypeVar

import msgspec

from autopart.errors import AutopartError

LARGEST = 2**63 - 1
"""The largest whole number in a file. Numbers of arrays have 64 bits."""
MOST_BYTES = 2**50
"""The largest size in a file: 1 PiB. Sums and products of sizes then keep to 64 bits."""
MOST_SECONDS = 1e12
"""The longest time in a file: 30,000 years. Sums of times then stay finite."""
LEAST_BANDWIDTH, MOST_BANDWIDTH = 1e-3, 1e18
"""Bytes per second of the slowest and the fastest link."""

MOST_AMOUNT = 1e18
"""The largest number without a unit of ours: a gap, or an amount in another planner's file."""

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_SECONDS, description="seconds")]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=MOST_BYTES, description="bytes")]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class Quantity(Protocol):
    """Seconds or bytes: a number, an array with an entry for each stage, or an affine expression."""

    def __add__(self, other: Any, /) -> Self: ...
    def __radd__(self, other: Any, /) -> Self: ...
    def __sub__(self, other: Any, /) -> Self: ...
    def __rsub__(self, other: Any, /) -> Self: ...
    def __mul__(self, other: Any, /) -> Self: ...
    def __rmul__(self, other: Any, /) -> Self: ...
    def __truediv__(self, other: Any, /) -> Any: ...  # An int becomes a float.


Q = TypeVar("Q", bound=Quantity)
"""One kind of quantity throughout a formula."""


_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_PREFIX = {**_DECIMAL, **_BINARY, "k": 10**3}
_DURATION = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*"


def parse_bytes(text: str) -> int:
    """Read a size such as ``80GiB``, ``80 GB`` or ``1024``, in bytes."""
    match = re.fullmatch(_NUMBER + r"([kKMGT]i?)?B?\s*", text)
    if match is None:
        raise AutopartError(f"'{text}' is not a size; write for example 80GiB, 500MB or 1024")
    size = float(match[1]) * _PREFIX[match[2] or ""]
    if not size <= MOST_BYTES:
        raise AutopartError(f"'{text}' is too large a size; at most {MOST_BYTES} bytes (1 PiB)")
    return round(size)


def parse_bandwidth(text: str) -> float:
    """Read a bandwidth such as ``25GB/s``, ``200Gbit/s`` or ``1e9``, in bytes per second."""
    match = re.fullmatch(_NUMBER + r"([kKMGT]i?)?(B|bit|b)?(?:/s|ps)?\s*", text)
    if match is None or float(match[1]) == 0.0:
        raise AutopartError(
            f"'{text}' is not a bandwidth; write for example 25GB/s, 200Gbit/s or 1e9 (bytes per second)"
        )
    bits = match[3] in ("bit", "b")
    rate = float(match[1]) * _PREFIX[match[2] or ""] / (8 if bits else 1)
    if not LEAST_BANDWIDTH <= rate <= MOST_BANDWIDTH:
        raise AutopartError(
            f"'{text}' is no bandwidth of a link; from {LEAST_BANDWIDTH:g} to {MOST_BANDWIDTH:g} "
            "bytes per second are known"
        )
    return rate


def parse_time(text: str) -> float:
    """Read a time such as ``5us``, ``0.2ms`` or ``1e-6``, in seconds."""
    match = re.fullmatch(_NUMBER + r"(s|ms|us|µs|ns)?\s*", text)
    if match is None:
        raise AutopartError(f"'{text}' is not a time; write for example 5us, 0.2ms or 1.5s")
    seconds = float(match[1]) * _TIME[match[2] or "s"]
    if not seconds <= MOST_SECONDS:
        raise AutopartError(f"'{text}' is too long a time; at most {MOST_SECONDS:g} s")
    return seconds


def parse_duration(text: str) -> float:
    """Read a time such as ``30d``, ``12h`` or ``2w``, in seconds; above 0."""
    match = re.fullmatch(_NUMBER + r"(w|d|h|min|s)\s*", text)
    seconds = float(match[1]) * _DURATION[match[2]] if match else 0.0
    if not 0.0 < seconds <= MOST_SECONDS:
        raise AutopartError(f"'{text}' is no time to train in; write for example 30d, 12h or 2w")
    return seconds


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
    """Write a time with two to four digits: ``812 ms``, ``1.02 s``, ``35.1 µs``."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        scaled = seconds * scale
        if abs(scaled) >= 1.0 or unit == "µs":
            digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
            return f"{scaled:.{digits}f} {unit}"
    raise AssertionError("the last unit always returns")


def format_training(seconds: float) -> str:
    """Write the time of a training: `34.2 days`, `1,920 days`, `5.3 hours`."""
    if seconds < _DURATION["h"]:
        return format_time(seconds)
    if seconds < _DURATION["d"]:
        return f"{seconds / _DURATION['h']:.1f} hours"
    days = seconds / _DURATION["d"]
    return f"{days:,.0f} days" if days >= 100 else f"{days:.1f} days"


def format_bandwidth(bandwidth: float) -> str:
    """Write a bandwidth in decimal gigabytes per second: ``25 GB/s``."""
    return f"{bandwidth / 1e9:.3g} GB/s"


def format_share(share: float) -> str:
    """Write a share as per cent: ``12.5 %``."""
    return f"{share * 100:.1f} %"


def format_change(change: float) -> str:
    """`-8.6 %`, `+3.5 %`, and `0.0 %` where it rounds to nothing."""
    rounded = round(100 * change, 1) + 0.0
    return f"{rounded:+.1f} %" if rounded else "0.0 %"


def format_gap(gap: float | None) -> str:
    """Write the gap over a lower bound as per cent; `unknown` where it is None."""
    return "unknown" if gap is None else format_share(gap)


def time_unit(largest: float) -> tuple[str, float]:
    """The unit, with its seconds, in which times up to `largest` read best in a column."""
    for unit in ("s", "ms"):
        if largest >= _TIME[unit]:
            return unit, _TIME[unit]
    unit = "µs" if largest > 0 else "ms"
    return unit, _TIME[unit]


def bytes_unit(largest: float) -> tuple[str, float]:
    """The binary unit, with its bytes, in which sizes up to `largest` read best in a column."""
    for prefix in ("Gi", "Mi", "Ki"):
        if largest >= _BINARY[prefix]:
            return f"{prefix}B", float(_BINARY[prefix])
    return "B", 1.0
