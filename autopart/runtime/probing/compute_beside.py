"""Matrix products alone, and beside an all-reduce over all ranks."""

# pyright: reportPrivateImportUsage=false

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import distributed

from autopart.records.readings import ComputeReadings
from autopart.runtime.engine.transfers import with_other_rank
from autopart.runtime.measuring.stopwatch import HostStopwatch, Stopwatch, stopwatch_of
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.samples import timed

_WIDTH_ON_CPU, _WIDTH_ON_GPU = 256, 4096
_ROUNDS = 5
_COVERED = 0.5
"""Compute takes this share of the all-reduce, so that it is over before."""


def measure_compute(ranks: Ranks, num_bytes: int) -> ComputeReadings:
    """Measure compute beside an all-reduce of so many bytes. Every rank must call this."""
    tensor = torch.zeros(num_bytes // 4, device=ranks.device)
    product = _product(ranks.device)
    product()
    # Step 1: as many products as fit under the all-reduce.
    sync = _slowest(ranks, lambda: _started(tensor)())
    one = _slowest(ranks, product)
    count = max(1, int(_COVERED * sync / one))
    compute = partial(_repeat, product, count)
    # Step 2: the same products alone and beside, in turns, timed apart from the all-reduce.
    alone, beside = [], []
    for _ in range(_ROUNDS):
        alone.append(_timed(ranks, compute, None))
        beside.append(_timed(ranks, compute, tensor))
    return ComputeReadings(alone=statistics.median(alone), beside=statistics.median(beside))


def _product(device: torch.device) -> Callable[[], object]:
    on_gpu = device.type == "cuda"
    width = _WIDTH_ON_GPU if on_gpu else _WIDTH_ON_CPU
    dtype = torch.bfloat16 if on_gpu else torch.float32
    left = torch.ones(width, width, device=device, dtype=dtype)
    result = torch.empty_like(left)
    return partial(torch.mm, left, left, out=result)


def _repeat(action: Callable[[], object], count: int) -> None:
    for _ in range(count):
        action()


def _started(tensor: torch.Tensor) -> Callable[[], object]:
    """Start an all-reduce. Returns its wait."""
    work = with_other_rank(
        partial(distributed.all_reduce, tensor, async_op=True), None, "an all-reduce"
    )
    assert work is not None
    return partial(with_other_rank, work.wait, None, "an all-reduce")


def _timed(ranks: Ranks, compute: Callable[[], object], tensor: torch.Tensor | None) -> float:
    """Return the seconds of the compute on the slowest rank, beside an all-reduce of the tensor."""
    stopwatch = _stopwatch(ranks.device)
    ranks.wait("the start of matrix products")
    wait = None if tensor is None else _started(tensor)
    _, seconds = stopwatch.measure(compute)
    if wait is not None:
        wait()
    stopwatch.settle()
    return max(ranks.gather(seconds(), "the times of matrix products"))


def _stopwatch(device: torch.device) -> Stopwatch:
    """Return a stopwatch that counts the time in which gloo's threads have the core."""
    return stopwatch_of(device) if device.type == "cuda" else HostStopwatch(threads=0)


def _slowest(ranks: Ranks, action: Callable[[], object]) -> float:
    ranks.wait("the start of a measurement")
    return max(ranks.gather(timed(action, ranks.device), "the times of others"))
