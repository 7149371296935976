"""Known GPUs by name: those of the makers' tables."""

from autopart.errors import ClusterError
from autopart.records.gpu import Gpu
from autopart.records.nvidia_gpus import NVIDIA_GPUS
from autopart.records.other_gpus import OTHER_GPUS
from autopart.text import known_names

GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in (*NVIDIA_GPUS, *OTHER_GPUS)}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`; raises ClusterError with the known names."""
    if name not in GPUS:
        raise ClusterError(f"unknown GPU '{name}'; {known_names(name, GPUS)}")
    return GPUS[name]


def known_name(device: str) -> str | None:
    """The name of the known GPU that a device is, also under its CUDA name; None where it is none."""
    return next((gpu.name for gpu in GPUS.values() if device in (gpu.name, *gpu.cuda_names)), None)
