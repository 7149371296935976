"""This process's peak memory since the watch began."""

import contextlib
import ctypes
import re
import resource
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""Value that proc(5) documents for clear_refs: it resets the peak to the present size."""


def how_measured(device: torch.device) -> str:
    """Describe the bytes that `peak_bytes` counts on `device`."""
    if device.type == "cuda":
        return "most bytes of tensors allocated on the GPU"
    return "largest resident set of the process, Python and torch included"


def watch_peak(device: torch.device) -> None:
    """Start the watch from the present memory. Freed memory goes back to the system first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):  # Only the GNU C library has it.
        ctypes.CDLL(None).malloc_trim(0)
    if _CLEAR.exists():
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            return  # Some containers forbid it: the peak then counts from the start of the process.


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes that this process had since `watch_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found is not None:
            return int(found[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
