"""Stopwatches and summaries."""

import time

import pytest

from autopart.runtime.measuring.stopwatch import HostStopwatch, relative_spread, summarize


class ToldClocks:
    """The wall's seconds and the thread's own, as told: they stand while nothing happens."""

    def __init__(self) -> None:
        self.wall, self.own = 100.0, 7.0

    def work(self, seconds: float) -> str:
        """The thread runs for so many seconds."""
        self.wall += seconds
        self.own += seconds
        return "done"

    def wait(self, seconds: float) -> None:
        """Another process has the core for so many seconds."""
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> ToldClocks:
    told = ToldClocks()
    monkeypatch.setattr(time, "perf_counter", lambda: told.wall)
    monkeypatch.setattr(time, "thread_time", lambda: told.own)
    return told


def test_the_summary_is_median_and_interquartile_range() -> None:
    assert summarize([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0)
    assert summarize([7.0]) == (7.0, 0.0)
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)
    assert relative_spread([0.0, 0.0]) == 0.0


def test_one_threads_time_is_counted_while_it_runs(clocks: ToldClocks) -> None:
    stopwatch = HostStopwatch(threads=1)
    result, reading = stopwatch.measure(lambda: (clocks.wait(3.0), clocks.work(1.0))[1])
    assert result == "done"
    assert reading() == pytest.approx(1.0)
    assert stopwatch.waiting_share == pytest.approx(0.75)


def test_several_threads_are_timed_by_the_wall(clocks: ToldClocks) -> None:
    stopwatch = HostStopwatch(threads=2)
    _, reading = stopwatch.measure(lambda: (clocks.wait(3.0), clocks.work(1.0)))
    assert reading() == pytest.approx(4.0)
    assert stopwatch.waiting_share == 0.0


def test_real_clocks_tell_some_time_of_real_work() -> None:
    for threads in (1, 2):
        stopwatch = HostStopwatch(threads)
        _, reading = stopwatch.measure(lambda: sum(range(100_000)))
        assert reading() > 0.0
        assert 0.0 <= stopwatch.waiting_share < 1.0
