import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.schedules.actions import (
    Action,
    Schedule,
    dealt,
    format_order,
    parse_action,
    parse_order,
)
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.check import check_schedule
from autopart.schedules.named.gpipe import gpipe
from autopart.schedules.named.one_f_one_b import one_f_one_b


def picture(*orders: str) -> Schedule:
    return tuple(parse_order(order) for order in orders)


def test_gpipe_makes_its_picture():
    assert gpipe([[0], [1]], 3) == picture(
        "0F0 0F1 0F2 0B0 0B1 0B2",
        "1F0 1F1 1F2 1B0 1B1 1B2",
    )


def test_one_f_one_b_makes_its_picture():
    assert one_f_one_b([[0], [1], [2]], 4) == picture(
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3",
        "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3",
        "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3",
    )


def test_one_f_one_b_runs_fewer_microbatches_than_stages_with_a_shorter_warm_up():
    assert one_f_one_b([[0], [1], [2]], 1) == picture("0F0 0B0", "1F0 1B0", "2F0 2B0")


def test_replicas_take_microbatches_in_turn():
    assert one_f_one_b([[0, 1], [2, 3]], 4) == picture(
        "0F0 0F2 0B0 0B2",
        "0F1 0F3 0B1 0B3",
        "1F0 1B0 1F2 1B2",
        "1F1 1B1 1F3 1B3",
    )
    assert list(dealt((2, 3), 3, 5)) == [1, 3]


def test_a_rank_without_a_stage_has_an_empty_order():
    assert gpipe([[0], [2]], 1)[1] == ()


@pytest.mark.slow
@given(
    st.sampled_from(["gpipe", "1f1b"]),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_every_generated_schedule_is_complete_and_free_of_deadlock(
    name: str, stages: int, replicas: int, microbatches: int
):
    ranks = [range(s * replicas, (s + 1) * replicas) for s in range(stages)]
    check_schedule(make_schedule(name, ranks, microbatches), ranks, microbatches)


@given(st.integers(0, 99), st.sampled_from("FBIW"), st.integers(0, 999))
def test_an_action_prints_and_parses(stage: int, op: str, microbatch: int):
    action = Action(stage, op, microbatch)  # pyright: ignore[reportArgumentType]
    assert parse_action(str(action)) == action
    assert parse_order(format_order((action, action))) == (action, action)


@pytest.mark.parametrize("text", ["1F", "F0", "1X0", "1F0garbage", "", "-1F0", "1F0 "])
def test_text_that_is_no_action_is_refused(text: str):
    with pytest.raises(ScheduleError, match="is not an action"):
        parse_action(text)


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ScheduleError, match="unknown schedule 'zigzag'; known: gpipe, 1f1b"):
        make_schedule("zigzag", [[0]], 1)


RANKS = [[0], [1]]


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (("0F0 0B0", "1F0"), "rank 1 never runs 1B0"),
        (("0F0 0B0 0F1", "1F0 1B0"), "rank 0 runs 0F1, which is not its own"),
        (("0F0 0F0 0B0", "1F0 1B0"), "rank 0 runs 0F0 twice"),
        (("0F0 0B0 1F0", "1B0"), "rank 1 never runs 1F0"),
        (("0B0 0F0", "1F0 1B0"), "deadlocks: rank 0 on 0B0, rank 1 on 1F0"),
        (("0F0 0I0", "1F0 1B0"), "rank 0 never runs 0W0"),
        (("0F0 0W0", "1F0 1B0"), "rank 0 never runs 0I0"),
        (("0F0 0B0 0W0", "1F0 1B0"), "rank 0 runs 0B0 and 0W0"),
        (("0F0 0W0 0I0", "1F0 1B0"), "deadlocks: rank 0 on 0W0"),
    ],
)
def test_an_invalid_schedule_is_refused_with_the_action(orders: tuple[str, str], message: str):
    with pytest.raises(ScheduleError, match=message):
        check_schedule(picture(*orders), RANKS, 1)


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.integers(1, 20),
    st.sampled_from(["gpipe", "1f1b", "eager-1f1b"]),
)
def test_schedules_with_unequal_replicas_are_complete_and_free_of_deadlock(
    counts, microbatches, name
):
    first = [sum(counts[:s]) for s in range(len(counts))]
    ranks = [list(range(a, a + r)) for a, r in zip(first, counts, strict=True)]
    check_schedule(make_schedule(name, ranks, microbatches), ranks, microbatches)


def test_a_stage_with_one_rank_warms_up_for_two_ranks_after_it():
    assert one_f_one_b([[0], [1, 2]], 4) == (
        parse_order("0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3"),
        parse_order("1F0 1B0 1F2 1B2"),
        parse_order("1F1 1B1 1F3 1B3"),
    )


MIRRORED = [[0, 1], [1, 0]]
"""Two pipelines in opposite directions over two ranks: even microbatches go down, odd ones up."""


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (("0F0 0B0", "1F0 1B0"), "rank 1 never runs 0F1"),
        (("0F0 0B0 1F1 1B1", "0F1 1F0 1B0"), "rank 1 never runs 0B1"),
        (("0F0 0B0 1F0 1B0", "0F1 0B1 1F1 1B1"), "rank 1 never runs 1F0"),
        (("0F0 0B0 1B1 1F1", "0F1 1F0 1B0 0B1"), "deadlocks: rank 0 on 1B1, rank 1 on 0B1"),
    ],
)  # fmt: skip
def test_each_microbatch_keeps_its_direction_over_mirrored_ranks(
    orders: tuple[str, str], message: str
):
    with pytest.raises(ScheduleError, match=message):
        check_schedule(picture(*orders), MIRRORED, 2)


def test_two_pipelines_over_the_same_ranks_pass():
    check_schedule(picture("0F0 0B0 1F1 1B1", "0F1 1F0 1B0 0B1"), MIRRORED, 2)


def test_stages_on_one_rank_hand_over_in_the_rank_s_order():
    check_schedule(picture("0F0 1F0 1B0 0B0"), [[0], [0]], 1)
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 on 1F0"):
        check_schedule(picture("1F0 0F0 1B0 0B0"), [[0], [0]], 1)


def test_actions_wait_for_a_split_backward_as_for_a_whole_one():
    check_schedule(picture("0F0 0I0 0W0", "1F0 1B0"), RANKS, 1)
    check_schedule(picture("0F0 0B0", "1F0 1I0 1W0"), RANKS, 1)
