"""Stopwatches and summaries."""

import time

import pytest

from autopart.runtime.measuring.stopwatch import HostStopwatch, relative_spread, summarize


def _busy(seconds: float) -> str:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return "done"


def test_the_summary_is_median_and_interquartile_range() -> None:
    assert summarize([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0)
    assert summarize([7.0]) == (7.0, 0.0)
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)
    assert relative_spread([0.0, 0.0]) == 0.0


def test_one_threads_time_is_counted_while_it_runs() -> None:
    stopwatch = HostStopwatch(threads=1)
    result, reading = stopwatch.measure(lambda: (time.sleep(0.05), _busy(0.01))[1])
    assert result == "done"
    assert 0.01 <= reading() < 0.04, "the sleep stands for another process on the core"
    assert 0.5 < stopwatch.waiting_share < 1.0


def test_several_threads_are_timed_by_the_wall() -> None:
    stopwatch = HostStopwatch(threads=2)
    _, reading = stopwatch.measure(lambda: time.sleep(0.02))
    assert reading() >= 0.02
    assert stopwatch.waiting_share < 0.01
