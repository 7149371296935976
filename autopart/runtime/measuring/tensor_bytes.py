"""Peak tensor bytes in one process during a step, on any device.

On a GPU the allocator reports them. On a CPU the process watches every operation, which is slow. A
step that counts bytes is therefore never a step that is timed. Scratch memory inside one kernel is
not seen on a CPU.
"""

from collections.abc import Callable, Iterable

import torch

from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.measuring.saved_tensors import storage_bytes, storage_key


def how_counted(device: torch.device) -> str:
    """Describe the bytes that `most_tensor_bytes` counts on `device`."""
    if device.type == "cuda":
        return "most bytes of tensors allocated on the GPU"
    return "most bytes of tensors alive at once, counted operation by operation"


def most_tensor_bytes(
    step: Callable[[], object],
    existing: Iterable[torch.Tensor],
    device: torch.device,
    excluded: Iterable[torch.Tensor] = (),
) -> int:
    """Run `step` and return the most tensor bytes that were alive at once.

    Tensors in `existing` are alive before the step and count. Tensors in `excluded` do not count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    before = list(existing)
    live = LiveStorages()
    for tensor in (*before, *excluded):
        live.ignore(tensor)
    with live:
        step()
    return live.peak_bytes + sum({storage_key(t): storage_bytes(t) for t in before}.values())
