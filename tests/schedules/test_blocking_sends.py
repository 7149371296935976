"""A schedule that passes its check runs even if a send blocks until it is received."""

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Schedule
from autopart.schedules.catalogue import KINDS
from autopart.schedules.check import check_schedule
from autopart.schedules.kind import Kind
from autopart.schedules.lending import computing
from autopart.schedules.pipeline import Pipeline
from tests.support.pictures import place_stages, slots
from tests.support.waits import predecessors


class Handover(NamedTuple):
    """One end of a message: its send or its receive."""

    end: str
    other_rank: int
    action: Action


def with_messages(schedule: Schedule, num_stages: int) -> list[deque[Action | Handover]]:
    """The orders with sends and receives, written along one common order for all ranks."""
    rank_of = {action: rank for rank, order in enumerate(schedule) for action in order}
    users: dict[Action, list[Action]] = {action: [] for action in rank_of}
    for action in rank_of:
        for needed in predecessors(action, num_stages, "BI"):
            if needed in rank_of and rank_of[needed] != rank_of[action]:
                users[needed].append(action)
    start = slots(schedule, num_stages)
    programs: list[deque[Action | Handover]] = [deque() for _ in schedule]
    for action in sorted(rank_of, key=lambda a: (start[a], rank_of[a])):
        here = rank_of[action]
        programs[here].append(action)
        for user in users[action]:
            programs[here].append(Handover("send", rank_of[user], action))
            programs[rank_of[user]].append(Handover("receive", here, action))
    return programs


def run_blocking(programs: list[deque[Action | Handover]]) -> bool:
    """Whether all ranks reach the end of their programs."""
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(programs):
            while program and isinstance(program[0], Action):
                program.popleft()
                moved = True
            if not program or program[0].end != "send":
                continue
            other_rank, message = program[0].other_rank, program[0].action
            if programs[other_rank] and programs[other_rank][0] == Handover(
                "receive", rank, message
            ):
                program.popleft()
                programs[other_rank].popleft()
                moved = True
    return not any(programs)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("ranks", [2, 4])
def test_no_schedule_deadlocks_with_blocking_sends(kind: Kind, ranks: int):
    pipeline = Pipeline(ranks, kind.stages_per_rank or 2, 3 * ranks)
    programs = with_messages(computing(kind.generate(pipeline)), pipeline.num_stages)
    assert any(isinstance(event, Handover) for program in programs for event in program)
    assert run_blocking(programs)


def test_receives_in_another_order_do_deadlock():
    """1F1B's orders with every receive right before its action.

    The check says that some place for the receives works. These places do not.
    """
    programs = with_messages(KINDS["1f1b"].generate(Pipeline(2, 1, 3)), 2)
    late: list[deque[Action | Handover]] = []
    for program in programs:
        waiting: list[Handover] = []
        written: deque[Action | Handover] = deque()
        for event in program:
            if isinstance(event, Handover) and event.end == "receive":
                waiting.append(event)
                continue
            if isinstance(event, Action):
                needed = predecessors(event, 2)
                written += [w for w in waiting if w.action in needed]
                waiting = [w for w in waiting if w.action not in needed]
            written.append(event)
        late.append(written)
    assert not run_blocking(late)


@settings(max_examples=60)
@given(st.sampled_from(list(KINDS.values())), st.data())
def test_a_refused_schedule_cannot_run_and_one_that_passes_can(kind: Kind, data: st.DataObject):
    pipeline = Pipeline(2, kind.stages_per_rank or 2, 4)
    stages = place_stages(kind, 2, pipeline.stages_per_rank)
    orders = [list(order) for order in kind.generate(pipeline)]
    order = orders[data.draw(st.integers(0, 1))]
    one, other = (data.draw(st.integers(0, len(order) - 1)) for _ in range(2))
    order[one], order[other] = order[other], order[one]
    schedule = tuple(map(tuple, orders))
    try:
        check_schedule(schedule, stages, 4)
    except ScheduleError as error:
        if "overlapped pair" in str(error):
            return
        assert "deadlocks: rank" in str(error)
        with pytest.raises(AssertionError, match="deadlocks"):
            slots(schedule, len(stages))
    else:
        slots(schedule, len(stages))
