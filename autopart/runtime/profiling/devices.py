"""Device and software under which a profile was made."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Literal

import torch

from autopart.errors import UsageError
from autopart.records.gpu import Gpu
from autopart.records.known_gpus import GPUS, find_gpu
from autopart.records.profile import Device

DeviceKind = Literal["cpu", "cuda", "meta"]
DEVICES: tuple[DeviceKind, ...] = ("cpu", "cuda", "meta")


def checked_device(device: str, gpu: str | None) -> tuple[DeviceKind, Gpu | None]:
    """Return the device and, on meta, the GPU whose roofline gives the times.

    Raises UsageError where the device does not exist here, or does not go with `gpu`. Raises
    ClusterError for an unknown GPU.
    """
    kinds: dict[str, DeviceKind] = {known: known for known in DEVICES}
    kind = kinds.get(device)
    if kind is None:
        raise UsageError(f"unknown device '{device}'; known: {', '.join(DEVICES)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device cuda: PyTorch {torch.__version__} finds no CUDA GPU here; use --device cpu, "
            "or --device meta --gpu h100-sxm for times from a GPU's datasheet"
        )
    if kind != "meta":
        if gpu is not None:
            raise UsageError(f"--gpu {gpu} goes with --device meta; on {kind} times are measured")
        return kind, None
    if gpu is None:
        raise UsageError(
            "device meta takes its times from a GPU's datasheet: name one with --gpu; "
            f"known: {', '.join(GPUS)}"
        )
    return kind, find_gpu(gpu)


def describe_device(kind: DeviceKind, gpu: Gpu | None) -> Device:
    """Describe the device for the profile."""
    if gpu is not None:
        return Device(kind="meta", name=gpu.name, memory_bytes=gpu.memory_bytes)
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Device(kind="cuda", name=properties.name, memory_bytes=properties.total_memory)
    return Device(
        kind="cpu",
        name=_processor_name(),
        threads=torch.get_num_threads(),
        memory_bytes=_host_memory(),
    )


def software_versions() -> dict[str, str]:
    """Return the versions of all software that may change the times."""
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "autopart": importlib.metadata.version("autopart"),
    }
    if torch.cuda.is_available():
        versions["cuda"] = str(torch.version.cuda)
    if "transformers" in sys.modules:
        versions["transformers"] = importlib.metadata.version("transformers")
    return versions


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "cpu"


def _host_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
