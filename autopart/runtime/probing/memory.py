"""What a rank may hold, what torch holds of it, and the way to the memory of its node."""

import os
import statistics
from collections.abc import Callable
from functools import partial

import torch

from autopart.probe_result import Reading
from autopart.runtime.execution.peak_memory import peak_bytes
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.samples import repetitions, slowest, timed

_COPIES = (1 << 20, 2 << 20, 4 << 20, 8 << 20)
"""Bytes; smaller copies find room that is warm, and would hide what the large ones cost."""
_ALIVE = 256 << 20
"""Bytes of copies of one size that are alive at once, as those of microbatches in flight are."""


def memory_of_rank(ranks: Ranks) -> int:
    """Bytes: of its GPU, or of the machine, shared by the ranks that sit on it."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return (_machine_memory() or 0) // ranks.per_node


def memory_of_node() -> int | None:
    """Bytes of the machine for what is offloaded to it; None where nobody knows."""
    return _machine_memory()


def reserve_of_rank(ranks: Ranks) -> int:
    """Bytes that are gone before a model is there: on a GPU what its context and the transport took,
    on a CPU the largest resident set of this process so far. To be called before anything else is
    measured."""
    if ranks.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(ranks.device)
        return total - free - torch.cuda.memory_reserved(ranks.device)
    return peak_bytes(ranks.device)


def measure_copies(ranks: Ranks) -> tuple[Reading, ...]:
    """Copies to the node's memory and back, into fresh room as the executor makes them; the slower
    way counts. All ranks copy at once, as they would in a step. Every rank must call this."""
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
    """Every copy goes to memory that none before it had: what a first touch costs is a part of it."""
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
