from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch

from autopart.runtime.measuring.pace import PaceMeter, pace_of

T = TypeVar("T")
CPU = torch.device("cpu")


class ToldStopwatch:
    """A stopwatch that runs each action and tells the next of the given seconds."""

    counts_host_work = True
    waiting_share = 0.0

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = iter(seconds)

    def measure(self, action: Callable[[], T]) -> tuple[T, Callable[[], float]]:
        told = next(self._seconds)
        return action(), lambda: told

    def settle(self) -> None:
        """Told seconds are known at once."""


def test_a_sample_is_the_median_over_its_pieces() -> None:
    meter = PaceMeter(CPU, ToldStopwatch([1.0, 9.0, 2.0, 4.0, 4.0, 8.0]))
    meter.sample()
    meter.sample()
    assert meter.samples == [2.0, 4.0]


def test_a_pace_is_the_median_over_all_samples_with_their_spread() -> None:
    pace = pace_of([1.0, 2.0, 3.0, 4.0, 9.0], CPU)
    assert pace is not None
    assert (pace.time, pace.spread, pace.samples) == (3.0, 2.0, 5)
    assert pace.threads == torch.get_num_threads()
    assert pace_of([], CPU) is None


def test_the_work_really_runs_and_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    meter = PaceMeter(CPU)
    meter.sample()
    assert meter.samples[0] > 0.0
    assert torch.equal(torch.get_rng_state(), before)
    assert pace_of(meter.samples, CPU) is not None
    assert pytest.approx(meter.samples[0]) == pace_of(meter.samples, CPU).time  # type: ignore[union-attr]
