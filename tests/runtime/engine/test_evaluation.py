"""The forwards of any schedule alone are a schedule that can be run."""

import pytest

from autopart.errors import ScheduleError
from autopart.runtime.engine.evaluation import forwards_of
from autopart.schedules.actions import Action
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.messages import Send, write_messages

RANKS = {
    "one way": [(0,), (1,)],
    "in loops": [(0,), (1,), (0,), (1,)],
    "in a V": [(0,), (1,), (1,), (0,)],
    "both ways": [(0, 1), (1, 0)],
}


@pytest.mark.parametrize("name", KINDS)
def test_forwards_alone_run_on_every_microbatch_and_stage(name: str) -> None:
    runs = 0
    for place, ranks in RANKS.items():
        if (place == "both ways") != KINDS[name].bidirectional:
            continue
        try:
            schedule = make_schedule(name, ranks, 4)
        except ScheduleError:
            continue  # the schedule has another placement
        programs = write_messages(forwards_of(schedule), ranks, receives_first=True)
        done = [event for program in programs for event in program if isinstance(event, Action)]
        assert sorted(done) == [Action(s, "F", m) for s in range(len(ranks)) for m in range(4)]
        assert any(isinstance(event, Send) for event in programs[0])
        runs += 1
    assert runs
