import inspect
import re
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.schedules.actions import format_order, parse_order
from autopart.schedules.catalogue import KINDS, fitting_counts, make_schedule, orders_by_name
from autopart.schedules.check import check_schedule
from autopart.schedules.kind import Kind
from autopart.schedules.named.interleaved import interleaved
from autopart.schedules.named.one_f_one_b import one_f_one_b
from autopart.schedules.named.zero_bubble import zb_h1, zb_h2
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import mirrored
from tests.support.pictures import copies, draw, place_stages
from tests.support.waits import most_in_flight

_PICTURES = re.compile(r"(?:^    rank \d+  .*\n)+", re.MULTILINE)


def pictures_in(text: str) -> list[list[str]]:
    """The pictures in a docstring, each as a list of lines."""
    return [[line.strip() for line in p.splitlines()] for p in _PICTURES.findall(text + "\n")]


def drawn(kind: Kind) -> list[str]:
    stages = kind.pictured.num_ranks * kind.pictured.stages_per_rank
    return draw(kind.generate(kind.pictured), stages)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_generator_makes_the_picture_in_its_file(kind: Kind):
    shown = pictures_in(inspect.getdoc(sys.modules[kind.generate.__module__]) or "")
    assert drawn(kind) in shown


@st.composite
def pipelines(draw_from: st.DrawFn, kind: Kind) -> Pipeline:
    per_rank = kind.stages_per_rank or draw_from(st.integers(1, 4))
    ranks, near = draw_from(st.integers(1, 9)), draw_from(st.integers(1, 40))
    counts = fitting_counts(kind, ranks, per_rank, near)
    assume(counts)
    return Pipeline(ranks, per_rank, draw_from(st.sampled_from(counts)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@given(data=st.data())
def test_every_schedule_is_complete_runs_and_stays_within_its_microbatches_in_flight(
    kind: Kind, data: st.DataObject
):
    pipeline = data.draw(pipelines(kind))
    ranks = place_stages(kind, pipeline.num_ranks, pipeline.stages_per_rank)
    schedule = kind.generate(pipeline)
    check_schedule(schedule, ranks, pipeline.microbatches_per_replica)
    peaks = tuple(map(most_in_flight, schedule))
    assert all(p <= most for p, most in zip(peaks, kind.in_flight(pipeline), strict=True))
    assert kind.splits_backward == any(a.op == "I" for order in schedule for a in order)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_microbatches_in_flight_that_a_schedule_names_are_reached(kind: Kind):
    per_rank = kind.stages_per_rank or 2
    pipeline = Pipeline(4, per_rank, 24)
    assert tuple(map(most_in_flight, kind.generate(pipeline))) == kind.in_flight(pipeline)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_replicas_run_the_orders_of_one_pipeline_on_their_own_microbatches(kind: Kind):
    per_rank = kind.stages_per_rank or 2
    one = place_stages(kind, 2, per_rank)
    two, together = copies(one, (10, 20)), len(one[0])
    schedule = make_schedule(kind.name, two, 8)
    alone = make_schedule(kind.name, one, 4)
    for replica, first in enumerate((10, 20)):
        for rank in (0, 1):
            expected = [
                a._replace(microbatch=2 * together * turn + replica * together + own)
                for a in alone[rank]
                for turn, own in [divmod(a.microbatch, together)]
            ]
            assert list(schedule[first + rank]) == expected
    check_schedule(schedule, two, 8)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_the_words_of_a_schedule_are_its_actions(kind: Kind, replicas: int):
    ranks, per_rank, count = kind.pictured
    one = place_stages(kind, ranks, per_rank)
    stages = copies(one, [ranks * replica for replica in range(replicas)])
    made = make_schedule(kind.name, stages, count * replicas)
    words = orders_by_name(kind.name, stages, count * replicas)
    assert words == tuple(map(format_order, made))
    assert kind.pairs == ("OVERLAP_F_B" in " ".join(words))


def test_the_words_of_a_schedule_with_uneven_replicas_are_its_actions():
    stages = ((0, 1, 2), (3, 4))
    made = make_schedule("1f1b", stages, 7)
    assert orders_by_name("1f1b", stages, 7) == tuple(" ".join(map(str, own)) for own in made)


def test_a_number_of_microbatches_that_does_not_fit_is_refused_with_numbers_that_fit():
    for name, ranks, microbatches, message in [
        ("interleaved-1f1b", [[0], [1], [2], [3]] * 2, 9, "next to it 8 or 10 in all would do"),
        ("interleaved-zb", [[0], [1]] * 2, 7, "next to it 6 or 8 in all would do"),
        ("dualpipev", [[0], [1], [1], [0]], 3, "at least .* next to it 4 in all would do"),
        ("chimera", [[0, 1], [1, 0]], 5, "next to it 4 or 6 in all would do"),
        ("chimera", [[0, 2], [1, 1], [2, 0]], 6, "an even number of ranks .* no number"),
        ("hanayo", [[0], [1], [1], [0]], 5, "next to it 4 or 6 in all would do"),
        ("hanayo", [[0, 4], [1, 5], [1, 5], [0, 4]], 10, "next to it 8 or 12 in all would do"),
        ("hanayo", [[0], [1]], 4, "an even number of stages per rank.* no number would do"),
    ]:
        with pytest.raises(ScheduleError, match=message):
            make_schedule(name, ranks, microbatches)


@given(st.sampled_from(list(KINDS.values())), st.data())
def test_the_numbers_named_are_the_nearest_that_fit(kind: Kind, data: st.DataObject):
    per_rank = kind.stages_per_rank or data.draw(st.integers(1, 4))
    ranks, near = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 60))
    counts = fitting_counts(kind, ranks, per_rank, near)
    fits = [n for n in range(1, 300) if kind.takes(Pipeline(ranks, per_rank, n))]
    below, above = [n for n in fits if n <= near], [n for n in fits if n >= near]
    assert counts == tuple(sorted({*below[-1:], *above[:1]}))


def test_stages_on_the_wrong_ranks_are_refused_with_ranks_that_fit():
    with pytest.raises(
        ScheduleError, match="cannot lie on ranks 0, 1, 0, 1; they could on 0, 1, 1, 0"
    ):
        make_schedule("zbv", [[0], [1], [0], [1]], 4)
    with pytest.raises(ScheduleError, match="runs 1 stage on each rank"):
        make_schedule("1f1b", [[0], [1], [0], [1]], 4)
    with pytest.raises(ScheduleError, match=r"as many ranks on every stage.* 1, 2; .* gpipe, 1f1b"):
        make_schedule("zb-h1", [[0], [1, 2]], 4)


@pytest.mark.parametrize("name", [n for n, kind in KINDS.items() if kind.bidirectional])
def test_a_bidirectional_schedule_refuses_other_ranks_than_mirrored_ones(name: str):
    with pytest.raises(ScheduleError, match=r"even number of ranks, and these have 1"):
        make_schedule(name, [[0], [1], [1], [0]], 4)
    with pytest.raises(ScheduleError, match=r"cannot lie on ranks 2, 3; they could on 1, 0"):
        make_schedule(name, [[0, 2], [1, 3]], 4)
    with pytest.raises(ScheduleError, match=r"runs 1 stage on each rank.* 0, 1, 1, 0"):
        make_schedule(name, [[0, 1], [1, 0], [1, 0], [0, 1]], 4)


@pytest.mark.parametrize("name", [n for n, kind in KINDS.items() if kind.bidirectional])
def test_even_microbatches_of_a_bidirectional_schedule_go_down_the_ranks_and_odd_ones_up(name: str):
    for rank, order in enumerate(make_schedule(name, mirrored([range(6)]), 12)):
        assert {a.stage for a in order if a.microbatch % 2 == 0} == {rank}
        assert {a.stage for a in order if a.microbatch % 2 == 1} == {5 - rank}


def test_warm_ups_of_one_forward_one_backward_can_be_chosen():
    made = one_f_one_b([[0], [1]], 4, (3, 2))
    assert made[0] == parse_order("0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3")
    assert made[1] == parse_order("1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3")
    with pytest.raises(ScheduleError, match="warm-ups 3 do not fit 2 stages"):
        one_f_one_b([[0], [1]], 4, (3,))


@pytest.mark.slow
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 12))
def test_warm_ups_that_never_grow_are_free_of_deadlock(depths: list[int], microbatches: int):
    ranks = [[rank] for rank in range(len(depths))]
    depths.sort(reverse=True)
    check_schedule(one_f_one_b(ranks, microbatches, depths), ranks, microbatches)


def test_a_warm_up_below_the_next_stage_s_deadlocks():
    ranks = [[0], [1]]
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 on 0B0, rank 1 on 1F1"):
        check_schedule(one_f_one_b(ranks, 4, (1, 2)), ranks, 4)


@pytest.mark.slow
@given(st.integers(1, 9), st.integers(1, 30))
def test_with_one_stage_per_rank_interleaved_schedules_are_plain(ranks: int, microbatches: int):
    line = Pipeline(ranks, 1, microbatches)
    eager = KINDS["eager-1f1b"].generate(line)
    assert interleaved(line) == eager
    assert [o[0] for o in zb_h1(line)] == [o[0] for o in zb_h2(line)]
