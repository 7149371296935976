"""How the C library keeps memory that tensors on a CPU no longer need.

By default large pieces go back to the system at once, and whoever takes one again pays for the first touch of
every page: of the backward of a layer with large logits that is a third, now more and now less. A GPU's
allocator keeps what it has. Told to do the same, the steps of a CPU are shorter and take equal times, which a
profile can foretell.
"""

import ctypes
import sys

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of mallopt(3) in glibc."""
_SETTINGS = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))
"""Nothing apart from the heap, which never shrinks and grows by this many bytes at least."""


def keep_freed_memory(device: torch.device) -> None:
    """From now on this process keeps what it frees for its next allocations, where it computes on a CPU and
    its C library can be told so (glibc can)."""
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for name, value in _SETTINGS:
            library.mallopt(name, value)
