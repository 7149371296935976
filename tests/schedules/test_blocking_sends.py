"""A schedule that passes its check runs even where a send blocks until it is received."""

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.schedule import Action, Schedule, check_schedule, predecessors
from autopart.schedules import KINDS, Kind, Pipeline, pipeline_starts, place_stages
from tests.schedules.pictures import slots


class Handover(NamedTuple):
    """One end of a message."""

    end: str
    peer: int
    action: Action


def with_messages(
    schedule: Schedule, num_stages: int, starts: tuple[int, ...]
) -> list[deque[Action | Handover]]:
    """The orders with sends and receives, written down along one order of all ranks together."""
    rank_of = {action: rank for rank, order in enumerate(schedule) for action in order}
    users: dict[Action, list[Action]] = {action: [] for action in rank_of}
    for action in rank_of:
        for needed in predecessors(action, num_stages, "BI", starts):
            if needed in rank_of and rank_of[needed] != rank_of[action]:
                users[needed].append(action)
    start = slots(schedule, num_stages, starts)
    programs: list[deque[Action | Handover]] = [deque() for _ in schedule]
    for action in sorted(rank_of, key=lambda a: (start[a], rank_of[a])):
        here = rank_of[action]
        programs[here].append(action)
        for user in users[action]:
            programs[here].append(Handover("send", rank_of[user], action))
            programs[rank_of[user]].append(Handover("receive", here, action))
    return programs


def run_blocking(programs: list[deque[Action | Handover]]) -> bool:
    """Whether all ranks come to their end."""
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(programs):
            while program and isinstance(program[0], Action):
                program.popleft()
                moved = True
            if not program or program[0].end != "send":
                continue
            peer, message = program[0].peer, program[0].action
            if programs[peer] and programs[peer][0] == Handover("receive", rank, message):
                program.popleft()
                programs[peer].popleft()
                moved = True
    return not any(programs)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("ranks", [2, 4])
def test_no_schedule_deadlocks_where_sends_block(kind: Kind, ranks: int):
    pipeline = Pipeline(ranks, kind.stages_per_rank or 2, 3 * ranks)
    starts = pipeline_starts(kind, pipeline.num_stages)
    programs = with_messages(kind.generate(pipeline), pipeline.num_stages, starts)
    assert any(isinstance(event, Handover) for program in programs for event in program)
    assert run_blocking(programs)


def test_receives_in_another_order_do_deadlock():
    """The same orders of 1F1B with every receive right before its action: the check is of what can
    run, and this is a way that cannot."""
    programs = with_messages(KINDS["1f1b"].generate(Pipeline(2, 1, 3)), 2, (0,))
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
def test_what_the_check_refuses_cannot_run_and_what_it_lets_pass_can(
    kind: Kind, data: st.DataObject
):
    pipeline = Pipeline(2, kind.stages_per_rank or 2, 4)
    stages, starts = place_stages(kind, 2, pipeline.stages_per_rank), ()
    starts = pipeline_starts(kind, len(stages))
    orders = [list(order) for order in kind.generate(pipeline)]
    order = orders[data.draw(st.integers(0, 1))]
    one, other = (data.draw(st.integers(0, len(order) - 1)) for _ in range(2))
    order[one], order[other] = order[other], order[one]
    schedule = tuple(map(tuple, orders))
    try:
        check_schedule(schedule, stages, 4, starts)
    except ScheduleError as error:
        assert "deadlocks: rank" in str(error)
        with pytest.raises(AssertionError, match="deadlocks"):
            slots(schedule, len(stages), starts)
    else:
        slots(schedule, len(stages), starts)
