"""Seconds of single kernels on one device, for a calibration.

Each operation runs several times per sample, with the stopwatch by which layers are profiled. The median over samples counts.
Nothing here has run on a GPU yet.
"""

import statistics
import time
from collections.abc import Sequence

import torch

from autopart.errors import UsageError
from autopart.records.calibration import MeasuredKernel
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.measuring.stopwatch import Stopwatch, stopwatch_of
from autopart.runtime.measuring.threads import use_threads
from autopart.runtime.models.precision import dtype_of
from autopart.runtime.probing.kernel_operations import (
    Action,
    Operation,
    costs_of,
    operations,
    prepared,
    work_of,
)
from autopart.runtime.profiling.devices import checked_device, describe_device

_SAMPLES = 5
_ENOUGH_SECONDS = 0.01
"""Seconds of one sample: an operation that takes less is repeated within it."""
_MOST_RUNS = 1000


def chosen_device(asked: str | None) -> tuple[str, str]:
    """The device to measure and its name: the one asked for, else a GPU where there is one.

    Raises UsageError for a missing GPU.
    """
    kind, _ = checked_device(asked or ("cuda" if torch.cuda.is_available() else "cpu"), None)
    return kind, describe_device(kind, None).name


def measure_kernels(
    device: str, dtype: str, threads: int, limit: float
) -> tuple[MeasuredKernel, ...]:
    """The seconds of each operation in `dtype`, those with less work first.

    After `limit` seconds no further operation begins. Raises UsageError where not one product was timed by then.
    """
    use_threads(threads)
    own, number = torch.device(device), dtype_of(dtype)
    keep_freed_memory(own)
    stopwatch = stopwatch_of(own)
    found: list[MeasuredKernel] = []
    until = time.monotonic() + limit
    for operation in operations(device):
        if time.monotonic() > until:
            break
        found.append(_measured(operation, number, own, stopwatch))
    if not any(one.kind == "products" for one in found):
        raise UsageError(f"--limit {limit:g}: no product was timed in so many seconds; raise it")
    return tuple(found)


def _measured(
    operation: Operation, dtype: torch.dtype, device: torch.device, stopwatch: Stopwatch
) -> MeasuredKernel:
    action = prepared(operation, dtype, device)
    seconds = _median(action, stopwatch)
    costs = costs_of(operation, dtype, device.type == "cpu")
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


def _samples(action: Action, runs: int, samples: int, stopwatch: Stopwatch) -> Sequence[float]:
    def repeat() -> None:
        for _ in range(runs):
            action()

    pending = [stopwatch.measure(repeat)[1] for _ in range(samples)]
    stopwatch.settle()
    return [time_of() / runs for time_of in pending]
