"""Memory on ranks and nodes, torch's reserve, and copies between a device and its host."""

import contextlib
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from autopart.records.readings import Reading
from autopart.runtime.measuring.peak_memory import peak_bytes
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.samples import repetitions, slowest, timed

_COPIES = (1 << 20, 2 << 20, 4 << 20, 8 << 20)
"""Copy sizes in bytes.

Smaller copies find room that was touched before, and would hide the large ones' cost.
"""
_ALIVE = 256 << 20
"""Bytes in equal copies that are alive at once, like the stashes in flight."""


def memory_of_rank(ranks: Ranks) -> int:
    """Return the rank's memory in bytes: its GPU's, or its share of the machine's."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return (_machine_memory() or 0) // ranks.per_node


def memory_of_node() -> int | None:
    """Return the machine's bytes for offloaded tensors; None where they are unknown."""
    return _machine_memory()


def free_memory(ranks: Ranks) -> int:
    """Return the bytes that this rank can still take: the GPU's, or its share of the machine's."""
    if ranks.device.type == "cuda":
        return torch.cuda.mem_get_info(ranks.device)[0]
    # Linux counts memory that caches would give back; elsewhere all of the machine's counts.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return (int(available.split()[1]) << 10) // ranks.per_node
    return memory_of_rank(ranks)


def reserve_of_rank(ranks: Ranks) -> int:
    """Return the bytes in use before a model exists.

    On a GPU these are context and transport. On a CPU it is this process's largest resident set so
    far. Call it before anything else is measured.
    """
    if ranks.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(ranks.device)
        return total - free - torch.cuda.memory_reserved(ranks.device)
    return peak_bytes(ranks.device)


def measure_copies(ranks: Ranks) -> tuple[Reading, ...]:
    """Measure copies to host memory and back, into fresh room, as the executor makes them.

    The slower direction counts. All ranks copy at once, as in a step. Every rank must call this.
    """
    mine: dict[int, list[float]] = {}
    for size in _COPIES:
        on_device = torch.zeros(size, dtype=torch.uint8, device=ranks.device)
        on_host = _copied_out(on_device)
        ranks.wait("the start of copies")
        out = _samples(ranks, partial(_copied_out, on_device))
        back = _samples(ranks, partial(_copied_back, on_host, ranks.device))
        mine[size] = max(out, back, key=statistics.median)
    return slowest(ranks.gather(mine, "the times of copies"))


def _samples(ranks: Ranks, copy: Callable[[], torch.Tensor]) -> list[float]:
    """Time copies that all go to untouched memory: the first touch is part of the cost."""
    alive = [copy()]
    samples = [timed(lambda: alive.append(copy()), ranks.device)]
    count = min(repetitions(samples[0]), _ALIVE // alive[0].nbytes)
    samples += [timed(lambda: alive.append(copy()), ranks.device) for _ in range(count)]
    return samples[1:]


def _copied_out(source: torch.Tensor) -> torch.Tensor:
    room = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
    return room.copy_(source, non_blocking=True)


def _copied_back(source: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_like(source, device=device).copy_(source, non_blocking=True)


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
