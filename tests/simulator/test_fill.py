"""Work in idle time."""

import random

import pytest

from autopart.simulator.fill import fill_idle
from autopart.simulator.idle import Idle

IDLE = (Idle(1.0, 3.0, "fill"), Idle(4.0, 5.0, "send"), Idle(9.0, 12.0, "drain"))


@pytest.mark.parametrize(
    ("seconds", "filled", "left"),
    [
        (0.0, (), 0.0),
        (1.5, ((1.0, 2.5),), 0.0),
        (2.0, ((1.0, 3.0),), 0.0),
        (2.5, ((1.0, 3.0), (4.0, 4.5)), 0.0),
        (6.0, ((1.0, 3.0), (4.0, 5.0), (9.0, 12.0)), 0.0),
        (10.0, ((1.0, 3.0), (4.0, 5.0), (9.0, 12.0)), 4.0),
    ],
)
def test_work_takes_the_earliest_idle_time(
    seconds: float, filled: tuple[tuple[float, float], ...], left: float
) -> None:
    found = fill_idle(IDLE, seconds)
    assert (found.filled, found.left) == (filled, left)
    assert found.time + found.left == seconds


def test_a_rank_that_is_never_idle_has_all_work_left() -> None:
    assert fill_idle((), 2.0) == ((), 2.0)


def test_no_second_of_work_is_lost_or_counted_twice() -> None:
    rng = random.Random(5)
    for _ in range(200):
        marks = sorted(rng.uniform(0, 100) for _ in range(2 * rng.randint(0, 9)))
        idle = tuple(Idle(a, b, "send") for a, b in zip(marks[::2], marks[1::2], strict=True))
        seconds = rng.uniform(0, 80)
        found = fill_idle(idle, seconds)
        assert found.time + found.left == pytest.approx(seconds, abs=1e-9)
        assert found.left <= 1e-9 or found.time == pytest.approx(sum(b - a for a, b, _ in idle))
        for start, end in found.filled:
            assert any(one.start <= start < end <= one.end for one in idle)
