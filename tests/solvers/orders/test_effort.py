import math
import time

import pytest

from autopart.solvers.orders.effort import Effort


def test_an_effort_is_over_when_its_actions_are_spent_or_its_deadline_has_passed():
    assert not Effort().is_over
    assert Effort(time.perf_counter() - 1.0).is_over
    effort = Effort(actions=10)
    effort.spend(9)
    assert not effort.is_over
    effort.spend(1)
    assert effort.is_over


def test_a_part_is_over_before_the_whole_and_its_actions_count_twice(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    whole = Effort(105.0, 100)
    part = whole.part(0.25)
    assert part.actions_left == 25
    assert part.deadline == pytest.approx(30.0)
    part.spend(25)
    assert part.is_over and not whole.is_over
    assert whole.actions_left == 75


def test_a_part_of_an_effort_without_limits_has_none():
    part = Effort().part(0.1)
    assert (part.deadline, part.actions_left) == (math.inf, math.inf)
