"""The critical path, held against the timeline's own slices."""

import itertools
import random

import pytest

from autopart.schedules.catalogue import make_schedule
from autopart.simulator.critical_path import critical_path
from autopart.simulator.timeline import Timeline, simulate
from tests.support.seeds import seeds
from tests.support.steps import random_step, stage


def check(timeline: Timeline) -> None:
    pieces = critical_path(timeline)
    # Step 1: the pieces cover the step without a gap.
    assert pieces[0].start == pytest.approx(0.0, abs=1e-9)
    assert pieces[-1].end == timeline.makespan
    for one, other in itertools.pairwise(pieces):
        assert one.end == pytest.approx(other.start, abs=1e-9)
    # Step 2: compute starts with an action of the named rank and stage, and lies inside it.
    # An overlapped pair has two actions in the same seconds.
    starts = [
        {(piece.start, piece.action.stage): piece for piece in own} for own in timeline.slices
    ]
    for piece in pieces:
        if piece.use == "compute":
            own = starts[piece.rank][piece.start, piece.stage]
            assert piece.end <= own.end + 1e-9


@pytest.mark.parametrize("block", seeds(2, 10))
def test_the_path_covers_every_step_without_a_gap(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        timeline = random_step(random.Random(seed)).simulate()
        if timeline.makespan > 0:
            check(timeline)


def test_the_path_of_a_slow_last_stage_is_its_work_between_one_fill_and_one_drain() -> None:
    line = [(0,), (1,), (2,)]
    stages = [stage(1.0, 2.0), stage(1.0, 2.0), stage(3.0, 6.0)]
    timeline = simulate(
        make_schedule("1f1b", line, 4), line, stages, (), action_overhead=0.0, sends_overlap=True
    )
    seconds = dict.fromkeys(range(3), 0.0)
    for piece in critical_path(timeline):
        assert piece.use == "compute"
        seconds[piece.stage] += piece.end - piece.start
    # Stage 2 has four microbatches; the others one forward before it and one backward behind it.
    assert seconds == {0: 3.0, 1: 3.0, 2: 36.0}
    assert timeline.makespan == 42.0


def test_gathers_and_reductions_on_the_path_are_told() -> None:
    line = [(0,), (1,)]
    stages = [stage(1.0, 2.0, update_time=1.0), stage(1.0, 2.0)]
    timeline = simulate(
        make_schedule("gpipe", line, 1), line, stages, (), action_overhead=0.0, sends_overlap=True
    )
    # 0F0, 0B0, 1F0, 1B0; reductions right before the update, gathers right behind it.
    shown = timeline._replace(
        exposed=(0.25, 0.5, 0.0, 0.75), around_update=((0.125, 0.25), (0.0, 0.0))
    )
    pieces = critical_path(shown)
    assert [(piece.use, piece.end - piece.start) for piece in pieces] == [
        ("compute", 0.75), ("shared state", 0.25), ("compute", 1.0), ("compute", 1.25), ("shared state", 0.75),
        ("compute", 1.5), ("shared state", 0.5), ("shared state", 0.125), ("update", 0.625), ("shared state", 0.25),
    ]  # fmt: skip
    check(shown)


def test_sends_on_the_path_are_told() -> None:
    line = [(0,), (1,)]
    stages = [stage(1.0, 2.0, send_time=0.5), stage(1.0, 2.0, send_back_time=0.25)]
    timeline = simulate(
        make_schedule("gpipe", line, 1), line, stages, (), action_overhead=0.0, sends_overlap=True
    )
    sends = [(p.stage, p.end - p.start) for p in critical_path(timeline) if p.use == "send"]
    assert sends == [(0, 0.5), (1, 0.25)]
