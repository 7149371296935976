"""What changes the figures of a probe from outside: library versions and environment variables."""

import os

import torch
from torch.cuda import nccl

from autopart.runtime.probing.ranks import Ranks

_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "FI_")
_NAMES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
)  # fmt: skip


def nccl_version(device: torch.device) -> str | None:
    """Return NCCL's version; None on a CPU."""
    if device.type != "cuda":
        return None
    return ".".join(map(str, nccl.version()))


def own_environment() -> dict[str, str]:
    """Return this process's variables that change how messages travel, or how fast it computes."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in _NAMES
    }


def differing(ranks: Ranks) -> tuple[str, ...]:
    """Return the names of variables whose values differ between ranks. Every rank must call this."""
    everyone = ranks.gather(own_environment(), "the environment of other ranks")
    names = {name for one in everyone for name in one}
    return tuple(sorted(name for name in names if len({one.get(name) for one in everyone}) > 1))
