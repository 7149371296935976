import inspect
import re
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.schedule import Order, check_schedule, parse_order
from autopart.schedules import (
    KINDS,
    Kind,
    Pipeline,
    fitting_counts,
    make_schedule,
    pipeline_starts,
    place_stages,
    twin,
)
from autopart.schedules.interleaved import interleaved
from autopart.schedules.one_f_one_b import one_f_one_b
from autopart.schedules.zero_bubble import zb_h1, zb_h2
from tests.schedules.pictures import draw

_PICTURES = re.compile(r"(?:^    rank \d+  .*\n)+", re.MULTILINE)


def pictures_in(text: str) -> list[list[str]]:
    """Every picture of a docstring, as its lines."""
    return [[line.strip() for line in p.splitlines()] for p in _PICTURES.findall(text + "\n")]


def drawn(kind: Kind) -> list[str]:
    stages = kind.pictured.num_ranks * kind.pictured.stages_per_rank
    return draw(kind.generate(kind.pictured), stages, pipeline_starts(kind, stages))


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_generator_makes_the_picture_in_its_file(kind: Kind):
    shown = pictures_in(inspect.getdoc(sys.modules[kind.generate.__module__]) or "")
    assert drawn(kind) in shown


def peak(order: Order) -> int:
    """The most microbatches past F and before B or W, over all stages of the rank."""
    held = most = 0
    for action in order:
        held += {"F": 1, "I": 0, "B": -1, "W": -1}[action.op]
        most = max(most, held)
    return most


@st.composite
def pipelines(draw_from: st.DrawFn, kind: Kind) -> Pipeline:
    per_rank = kind.stages_per_rank or draw_from(st.integers(1, 4))
    ranks, near = draw_from(st.integers(1, 9)), draw_from(st.integers(1, 40))
    counts = fitting_counts(kind, ranks, per_rank, near)
    assume(counts)
    return Pipeline(ranks, per_rank, draw_from(st.sampled_from(counts)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@given(data=st.data())
def test_every_schedule_is_complete_free_of_deadlock_and_holds_what_it_says(
    kind: Kind, data: st.DataObject
):
    pipeline = data.draw(pipelines(kind))
    ranks = place_stages(kind, pipeline.num_ranks, pipeline.stages_per_rank)
    schedule = kind.generate(pipeline)
    starts = pipeline_starts(kind, len(ranks))
    check_schedule(schedule, ranks, pipeline.num_microbatches, starts)
    peaks = tuple(map(peak, schedule))
    assert all(p <= most for p, most in zip(peaks, kind.in_flight(pipeline), strict=True))
    assert kind.splits_backward == any(a.op == "I" for order in schedule for a in order)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_what_is_said_to_be_held_is_reached(kind: Kind):
    per_rank = kind.stages_per_rank or 2
    pipeline = Pipeline(4, per_rank, 24)
    assert tuple(map(peak, kind.generate(pipeline))) == kind.in_flight(pipeline)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_replicas_of_a_pipeline_take_turns(kind: Kind):
    per_rank = kind.stages_per_rank or 2
    one = place_stages(kind, 2, per_rank)
    two = [[10 + rank, 20 + rank] for (rank,) in one]
    schedule = make_schedule(kind.name, two, 8)
    alone = make_schedule(kind.name, one, 4)
    for replica, first in enumerate((10, 20)):
        for rank in (0, 1):
            expected = [a._replace(microbatch=2 * a.microbatch + replica) for a in alone[rank]]
            assert list(schedule[first + rank]) == expected
    check_schedule(schedule, two, 8, pipeline_starts(kind, len(two)))


def test_a_number_of_microbatches_that_does_not_fit_is_refused_with_those_that_do():
    for name, ranks, microbatches, message in [
        ("interleaved-1f1b", [[0], [1], [2], [3]] * 2, 9, "next to it 8 or 10 in all would do"),
        ("interleaved-zb", [[0], [1]] * 2, 7, "next to it 6 or 8 in all would do"),
        ("dualpipev", [[0], [1], [1], [0]], 3, "at least .* next to it 4 in all would do"),
        ("chimera", [[0], [1], [1], [0]], 5, "next to it 4 or 6 in all would do"),
        ("chimera", [[0], [1], [2], [2], [1], [0]], 6, "an even number of ranks .* no number"),
        ("hanayo", [[0], [1], [1], [0]], 5, "next to it 4 or 6 in all would do"),
        ("hanayo", [[0, 4], [1, 5], [1, 5], [0, 4]], 10, "next to it 8 or 12 in all would do"),
        ("hanayo", [[0], [1]], 4, "an even number of stages a rank.* no number would do"),
    ]:
        with pytest.raises(ScheduleError, match=message):
            make_schedule(name, ranks, microbatches)


@given(st.sampled_from(list(KINDS.values())), st.data())
def test_numbers_that_would_do_are_the_nearest_that_do(kind: Kind, data: st.DataObject):
    per_rank = kind.stages_per_rank or data.draw(st.integers(1, 4))
    ranks, near = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 60))
    counts = fitting_counts(kind, ranks, per_rank, near)
    fits = [n for n in range(1, 300) if kind.takes(Pipeline(ranks, per_rank, n))]
    below, above = [n for n in fits if n <= near], [n for n in fits if n >= near]
    assert counts == tuple(sorted({*below[-1:], *above[:1]}))


def test_stages_that_lie_elsewhere_are_refused_with_where_they_could():
    with pytest.raises(
        ScheduleError, match="cannot lie on ranks 0, 1, 0, 1; they could on 0, 1, 1, 0"
    ):
        make_schedule("zbv", [[0], [1], [0], [1]], 4)
    with pytest.raises(ScheduleError, match="runs 1 stages on each rank"):
        make_schedule("1f1b", [[0], [1], [0], [1]], 4)
    with pytest.raises(ScheduleError, match=r"as many ranks on every stage.* 1, 2; .* gpipe, 1f1b"):
        make_schedule("zb-h1", [[0], [1, 2]], 4)


def test_the_two_directions_of_a_bidirectional_schedule_share_their_layers():
    chimera = KINDS["chimera"]
    assert [twin(chimera, 8, stage) for stage in range(8)] == [4, 5, 6, 7, 0, 1, 2, 3]
    assert twin(KINDS["zbv"], 8, 3) is None
    assert pipeline_starts(chimera, 8) == (0, 4)


def test_warm_ups_are_a_choice_of_one_forward_one_backward_alone():
    made = make_schedule("1f1b", [[0], [1]], 4, warmups=(3, 2))
    assert made[0] == parse_order("0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3")
    assert made[1] == parse_order("1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3")
    assert made == one_f_one_b([[0], [1]], 4, (3, 2))
    with pytest.raises(ScheduleError, match="'gpipe' has no warm-ups to choose"):
        make_schedule("gpipe", [[0], [1]], 4, warmups=(3, 2))
    with pytest.raises(ScheduleError, match="warm-ups 3 do not fit 2 stages"):
        make_schedule("1f1b", [[0], [1]], 4, warmups=(3,))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 12))
def test_warm_ups_run_where_none_is_below_the_next(depths: list[int], microbatches: int):
    ranks = [[rank] for rank in range(len(depths))]
    depths.sort(reverse=True)
    check_schedule(make_schedule("1f1b", ranks, microbatches, depths), ranks, microbatches)


def test_a_warm_up_below_the_next_deadlocks_and_is_refused():
    ranks = [[0], [1]]
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 on 0B0, rank 1 on 1F1"):
        check_schedule(make_schedule("1f1b", ranks, 4, (1, 2)), ranks, 4)


@given(st.integers(1, 9), st.integers(1, 30))
def test_one_stage_a_rank_makes_interleaved_schedules_plain(ranks: int, microbatches: int):
    line = Pipeline(ranks, 1, microbatches)
    eager = KINDS["eager-1f1b"].generate(line)
    assert interleaved(line) == eager
    assert [o[0] for o in zb_h1(line)] == [o[0] for o in zb_h2(line)]
