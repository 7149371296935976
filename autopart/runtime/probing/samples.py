"""Repeated measurements, and their summary."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from autopart.records.readings import Reading
from autopart.runtime.measuring.clock import clock_of
from autopart.runtime.measuring.stopwatch import relative_spread, summarize

ENOUGH_SECONDS = 0.25
"""Seconds for all repetitions with one size."""
FEWEST, MOST = 3, 60
"""Fewest and most repetitions. Sizes that take longer than `LONGEST` run once."""
LONGEST = 0.5
"""Seconds above which a size is not repeated, and no larger size is tried."""


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Return the wall-clock seconds until `action` is done on the device."""
    clock = clock_of(device)
    clock.wait()
    begin = time.perf_counter()
    action()
    clock.wait()
    return time.perf_counter() - begin


def repetitions(trial: float) -> int:
    """Return how often to repeat after a trial that took `trial` seconds.

    1 means that no larger size should be tried.
    """
    if trial > LONGEST:
        return 1
    return max(FEWEST, min(MOST, int(ENOUGH_SECONDS / max(trial, 1e-9))))


def reading(num_bytes: int, samples: Sequence[float]) -> Reading:
    """Summarize the samples for one size."""
    return Reading(
        num_bytes=num_bytes,
        time=summarize(samples).median,
        spread=relative_spread(samples),
        count=len(samples),
    )


def slowest(found: Sequence[Mapping[int, Sequence[float]]]) -> tuple[Reading, ...]:
    """Return, for each size, the slowest rank's reading."""
    sizes = sorted({size for one in found for size in one})
    return tuple(
        max((reading(size, one[size]) for one in found if size in one), key=lambda r: r.time)
        for size in sizes
    )
