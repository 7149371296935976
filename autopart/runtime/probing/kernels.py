"""Seconds of single kernels on one device, for a calibration.

The median over samples counts, by the stopwatch by which layers are profiled. On a CPU a sample is one run, as a step sees it: work on
other tensors has filled the core's caches, and only the operand that the operation before makes is there. On a GPU a sample
repeats the operation; its streams are larger than caches. Nothing here has run on a GPU yet.
"""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from autopart.cost.contention import CACHE_BYTES
from autopart.errors import UsageError
from autopart.records.calibration import MeasuredKernel
from autopart.records.pace import Pace
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.measuring.pace import PaceMeter, pace_of
from autopart.runtime.measuring.stopwatch import PendingTime, Stopwatch, stopwatch_of
from autopart.runtime.measuring.threads import use_threads
from autopart.runtime.models.precision import dtype_of
from autopart.runtime.probing.kernel_operations import (
    Action,
    Operation,
    Prepared,
    costs_of,
    operations,
    prepared,
    work_of,
)
from autopart.runtime.profiling.devices import checked_device, describe_device

_SAMPLES = 5
_COLD_SAMPLES = 15
_OTHER_BYTES = 2 * CACHE_BYTES
"""Bytes of other work before a sample on a CPU. They exceed a core's own caches, and not those of many cores."""
_ENOUGH_SECONDS = 0.01
"""Seconds of one sample: an operation that takes less is repeated within it."""
_MOST_RUNS = 1000
_BETWEEN_PACES = 10
"""Operations between two samples of the machine's pace."""


class KernelReadings(NamedTuple):
    """What the probe measured."""

    kernels: tuple[MeasuredKernel, ...]
    pace: Pace | None


def chosen_device(asked: str | None) -> tuple[str, str]:
    """The device to measure and its name: the one asked for, else a GPU where there is one.

    Raises UsageError for a missing GPU.
    """
    kind, _ = checked_device(asked or ("cuda" if torch.cuda.is_available() else "cpu"), None)
    return kind, describe_device(kind, None).name


def measure_kernels(device: str, dtype: str, threads: int, limit: float) -> KernelReadings:
    """The seconds of each operation in `dtype`, those with less work first, and the machine's pace between them.

    After `limit` seconds no further operation begins. Raises UsageError where not one product was timed by then.
    """
    use_threads(threads)
    own, number = torch.device(device), dtype_of(dtype)
    keep_freed_memory(own)
    stopwatch = stopwatch_of(own)
    pace = PaceMeter(own, stopwatch)
    found: list[MeasuredKernel] = []
    until = time.monotonic() + limit
    for operation in operations(device):
        if time.monotonic() > until:
            break
        if len(found) % _BETWEEN_PACES == 0:
            pace.sample()
        found.append(_measured(operation, number, own, stopwatch))
    if not any(one.kind == "products" for one in found):
        raise UsageError(f"--limit {limit:g}: no product was timed in so many seconds; raise it")
    return KernelReadings(tuple(found), pace_of(pace.samples, own))


def _measured(
    operation: Operation, dtype: torch.dtype, device: torch.device, stopwatch: Stopwatch
) -> MeasuredKernel:
    action = prepared(operation, dtype, device)
    on_cpu = device.type == "cpu"
    seconds = _cold_median(action, stopwatch) if on_cpu else _median(action.run, stopwatch)
    costs = costs_of(operation, dtype, on_cpu)
    work = work_of(costs, operation)
    is_launch = operation.kind == "launch"
    return MeasuredKernel(
        kind=operation.kind,
        operation=operation.name,
        shape=operation.shape,
        amount=0.0 if is_launch else work,
        seconds=seconds / work if is_launch else seconds,
    )


def _median(action: Action, stopwatch: Stopwatch) -> float:
    """Median seconds of one run. A first run warms up, and a second one tells how often to repeat."""
    action()
    trial = _samples(action, 1, 1, stopwatch)[0]
    runs = max(1, min(_MOST_RUNS, int(_ENOUGH_SECONDS / max(trial, 1e-9))))
    return statistics.median(_samples(action, runs, _SAMPLES, stopwatch))


def _cold_median(action: Prepared, stopwatch: Stopwatch) -> float:
    """Median seconds of single runs, each after work on other tensors."""
    others = torch.ones(_OTHER_BYTES // 4)
    received = action.received.detach()
    action.run()
    pending: list[PendingTime] = []
    for _ in range(_COLD_SAMPLES):
        others.add_(1.0)
        received.sum()
        pending.append(stopwatch.measure(action.run)[1])
    stopwatch.settle()
    return statistics.median(time_of() for time_of in pending)


def _samples(action: Action, runs: int, samples: int, stopwatch: Stopwatch) -> Sequence[float]:
    def repeat() -> None:
        for _ in range(runs):
            action()

    pending = [stopwatch.measure(repeat)[1] for _ in range(samples)]
    stopwatch.settle()
    return [time_of() / runs for time_of in pending]
