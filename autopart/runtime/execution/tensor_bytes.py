"""The most bytes of tensors that one process holds during a step, on any device.

On a GPU the allocator knows. On a CPU every operation is watched, which is slow, so that a step that
counts bytes is not one that is timed; scratch memory inside one kernel is not seen.
"""

from collections.abc import Callable, Iterable

import torch

from autopart.runtime.profiling.liveness import LiveStorages
from autopart.runtime.profiling.stash import storage_bytes, storage_key


def how_counted(device: torch.device) -> str:
    """What `most_tensor_bytes` counts on `device`."""
    if device.type == "cuda":
        return "most bytes of tensors allocated on the GPU"
    return "most bytes of tensors alive at once, counted operation by operation"


def most_tensor_bytes(
    step: Callable[[], object],
    there: Iterable[torch.Tensor],
    device: torch.device,
    aside: Iterable[torch.Tensor] = (),
) -> int:
    """Run `step` and give the most bytes of tensors that were alive at once; `there` are those that are
    alive before it, those of `aside` do not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    before = list(there)
    live = LiveStorages()
    for tensor in (*before, *aside):
        live.ignore(tensor)
    with live:
        step()
    return live.peak_bytes + sum({storage_key(t): storage_bytes(t) for t in before}.values())
