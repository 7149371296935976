"""Times of the same thing done several times."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from autopart.probe_result import Reading
from autopart.runtime.execution.clock import clock_of
from autopart.runtime.profiling.timing import relative_spread, summarize

ENOUGH_SECONDS = 0.25
"""Of measuring one size."""
FEWEST, MOST = 3, 60
"""Repetitions of one size, but for those that alone take longer than `LONGEST`."""
LONGEST = 0.5
"""Seconds; what takes longer is not repeated, and nothing larger is tried."""


def timed(deed: Callable[[], object], device: torch.device) -> float:
    """Seconds on the clock until `deed` is done on the device."""
    clock = clock_of(device)
    clock.wait()
    begin = time.perf_counter()
    deed()
    clock.wait()
    return time.perf_counter() - begin


def repetitions(trial: float) -> int:
    """How often to repeat what took `trial` seconds; 1 where nothing larger should be tried."""
    if trial > LONGEST:
        return 1
    return max(FEWEST, min(MOST, int(ENOUGH_SECONDS / max(trial, 1e-9))))


def reading(num_bytes: int, samples: Sequence[float]) -> Reading:
    """The samples of one size, summed up."""
    return Reading(
        num_bytes=num_bytes,
        time=summarize(samples).median,
        spread=relative_spread(samples),
        count=len(samples),
    )


def slowest(found: Sequence[Mapping[int, Sequence[float]]]) -> tuple[Reading, ...]:
    """For each size the readings of whoever took longest."""
    sizes = sorted({size for one in found for size in one})
    return tuple(
        max((reading(size, one[size]) for one in found if size in one), key=lambda r: r.time)
        for size in sizes
    )
