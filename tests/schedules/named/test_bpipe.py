"""BPipe's orders against the paper's counts, which stand here again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Order
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.in_flight import STASH, in_flight_by_rank
from autopart.schedules.lending import computing, lent_by, places_by_stage
from autopart.schedules.named.bpipe import bpipe
from autopart.schedules.named.one_f_one_b import one_f_one_b
from autopart.schedules.pipeline import Pipeline


def on_rank(order: Order) -> tuple[int, int]:
    """The most stashes that a rank has, and the most that it has elsewhere, one in transit included.

    An oracle that follows every stash: "here", "leaving", "away" or "coming". A move is over when
    the action beside it is.
    """
    where: dict[int, str] = {}
    most = elsewhere = 0
    for action in order:
        if action.op in "LT":
            where[action.microbatch] = "leaving" if action.op == "L" else "coming"
            continue
        if action.op == "F":
            where[action.microbatch] = "here"
        assert action.op == "F" or where[action.microbatch] == "here", f"{action} lacks its stash"
        states = list(where.values())
        most = max(most, len(states) - states.count("away"))
        elsewhere = max(elsewhere, len(states) - states.count("here"))
        assert states.count("leaving") + states.count("coming") <= 1, "one move at a time"
        if action.op == "B":
            del where[action.microbatch]
        done = {"leaving": "away", "coming": "here"}
        where = {m: done.get(state, state) for m, state in where.items()}
    return most, elsewhere


@given(st.integers(1, 9), st.integers(1, 50))
def test_no_rank_has_more_than_half_of_the_pipeline_s_stashes_and_one(half: int, microbatches: int):
    k, n = 2 * half, half + 1
    schedule = bpipe(Pipeline(k, 1, microbatches))
    ranks = [(rank,) for rank in range(k)]
    assert computing(schedule) == one_f_one_b(ranks, microbatches)
    counted = in_flight_by_rank(schedule, ranks)
    places = places_by_stage(schedule, ranks)
    for rank, order in enumerate(schedule):
        own, lent = on_rank(order)
        assert own == min(k - rank, microbatches, n)
        assert counted[rank].counts[:, STASH].max() == own
        assert places[k - 1 - rank] == lent
        assert own + on_rank(schedule[k - 1 - rank])[1] <= n
        assert not lent or rank < half


@pytest.mark.parametrize(("k", "rank"), [(4, 0), (8, 0), (8, 1), (8, 2), (16, 0), (16, 5)])
def test_the_part_that_is_lent_is_the_formula_s(k: int, rank: int):
    """w - n of any w - 3 microbatches once the pipeline is full, with w = k - rank and n = k / 2 + 1."""
    w, n = k - rank, k // 2 + 1
    lent = [one.microbatch for one in lent_by(bpipe(Pipeline(k, 1, 40 * k))[rank])]
    window = range(10 * k, 10 * k + 7 * (w - 3))
    assert sum(m in window for m in lent) == 7 * (w - n)


def test_a_short_step_lends_only_what_its_microbatches_need():
    assert not lent_by(bpipe(Pipeline(8, 1, 5))[0])
    assert [one.microbatch for one in lent_by(bpipe(Pipeline(8, 1, 6))[0])] == [3]


def test_each_replica_lends_its_own_microbatches():
    orders = make_schedule("bpipe", [[0, 4], [1, 5], [2, 6], [3, 7]], 8)
    assert [one.microbatch for one in lent_by(orders[0])] == [2, 4]
    assert [one.microbatch for one in lent_by(orders[4])] == [3, 5]
    assert Action(0, "L", 3) in orders[4]


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_an_odd_number_of_ranks_is_refused(ranks: int):
    with pytest.raises(ScheduleError, match="it takes an even number of ranks; no number would do"):
        make_schedule("bpipe", [[rank] for rank in range(ranks)], 8)
