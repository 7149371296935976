"""The machine's pace: seconds of a fixed piece of work, before, between and after a measurement."""

import statistics
from collections.abc import Sequence

import torch

from autopart.records.pace import Pace
from autopart.runtime.measuring.fixed_work import TransformerMlp
from autopart.runtime.measuring.stopwatch import Stopwatch, stopwatch_of, summarize

_PIECES = 3
"""Times that a sample runs the work; their median counts."""
_ON_CPU, _ON_GPU = (128, 256), (1024, 4096)
"""Width and tokens: 0.17 GFLOP, or 172 GFLOP."""


class PaceMeter:
    """Samples the pace with the stopwatch by which layers are profiled.

    On a CPU with one thread only the thread's own seconds count, so other processes count only as far as
    they share caches, memory and clocks.
    """

    def __init__(self, device: torch.device, stopwatch: Stopwatch | None = None) -> None:
        self._stopwatch = stopwatch or stopwatch_of(device)
        self._work = TransformerMlp(device, *(_ON_GPU if device.type == "cuda" else _ON_CPU))
        self.samples: list[float] = []
        """Seconds of the work in each sample so far."""

    def sample(self) -> None:
        """Run the work and add a sample. The first call runs it once more, to warm up."""
        if not self.samples:
            self._work.run()
        times = [self._stopwatch.measure(self._work.run)[1] for _ in range(_PIECES)]
        self._stopwatch.settle()
        self.samples.append(statistics.median(time() for time in times))


def pace_of(samples: Sequence[float], device: torch.device) -> Pace | None:
    """The pace over all samples; None where there are none."""
    if not samples:
        return None
    summary = summarize(samples)
    threads = None if device.type == "cuda" else torch.get_num_threads()
    return Pace(time=summary.median, spread=summary.spread, samples=len(samples), threads=threads)
