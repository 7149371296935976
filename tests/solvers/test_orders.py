import random
import time

import pytest

from autopart.errors import InfeasibleError
from autopart.order_bounds import OrderProblem, least_step
from autopart.schedule import check_schedule, parse_order
from autopart.simulator import StageTimes, simulate
from autopart.solvers.orders import optimize_orders
from autopart.solvers.orders.evaluation import Clock, fits, peak_stash
from autopart.solvers.orders.listing import Policy, list_schedule
from autopart.solvers.orders.local_search import LocalSearch
from tests.seeds import seeds
from tests.solvers.orders_oracle import PLACEMENTS, best_step, random_task, small_task

ROUNDING = 1 + 1e-9


def equal_stages(num_stages: int, send: float, **fields) -> OrderProblem:
    """Stages of 1 s forward and 2 s backward on a rank each, that keep 10 bytes a microbatch."""
    last = num_stages - 1
    return OrderProblem(
        stages=[
            StageTimes(1.0, 2.0, send * (s < last), send * (s > 0), 0.0, 1.0)
            for s in range(num_stages)
        ],
        stage_ranks=tuple((s,) for s in range(num_stages)),
        stash_bytes=(10,) * num_stages,
        **{"num_microbatches": 16, **fields},
    )


def makespan(task: OrderProblem, schedule) -> float:
    return simulate(
        schedule,
        task.stage_ranks,
        task.stages,
        task.syncs,
        action_overhead=task.action_overhead,
        sends_overlap=task.sends_overlap,
    ).makespan


def least_rooms(task: OrderProblem) -> tuple[int, ...]:
    """For each rank the bytes of one microbatch of all its stages."""
    ranks = {rank for own in task.stage_ranks for rank in own}
    return tuple(
        sum(b for b, own in zip(task.stash_bytes, task.stage_ranks, strict=True) if rank in own)
        for rank in sorted(ranks)
    )


@pytest.mark.parametrize("block", seeds(4, 10))
def test_the_best_of_all_orders_is_found_and_none_beats_the_bound(block: int):
    """Where backwards may be split, orders that split some and not others may be better still."""
    for seed in range(8 * block, 8 * block + 8):
        task = small_task(random.Random(seed))
        steps = [best_step(task, split=split) for split in {False, task.split}]
        best = min(step for step in steps if step is not None)
        found = optimize_orders(task, actions=200_000)
        assert least_step(task) <= min(best, found.step_time) * ROUNDING, seed
        assert found.step_time <= best * ROUNDING, seed


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_no_order_of_thousands_of_small_problems_beats_the_bound(block: int):
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        task = small_task(random.Random(seed))
        for split in {False, task.split}:
            best = best_step(task, split=split)
            assert best is None or least_step(task) <= best * ROUNDING, seed


@pytest.mark.parametrize("seed", seeds(30, 60))
def test_a_result_is_whole_fits_and_is_what_the_simulator_says(seed: int):
    rng = random.Random(seed)
    ranks = PLACEMENTS[rng.choice(list(PLACEMENTS))]
    m, split = rng.randint(1, 9), rng.random() < 0.5
    task = random_task(rng, len(ranks), m, split=split, room=True, stage_ranks=ranks)
    found = optimize_orders(task, actions=40_000)
    check_schedule(found.schedule, ranks, m)
    assert found.step_time == pytest.approx(makespan(task, found.schedule), rel=1e-12)
    assert found.peak_stash_bytes == peak_stash(task, found.schedule)
    assert fits(task, found.schedule)
    assert found.lower_bound <= found.step_time * ROUNDING
    assert found.step_time_without_cap <= found.step_time * ROUNDING
    assert all(found.step_time <= step * ROUNDING for step in found.named.values())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("seed", seeds(6, 15))
def test_list_scheduling_never_deadlocks_where_one_microbatch_fits(placement: str, seed: int):
    rng = random.Random(seed)
    ranks = PLACEMENTS[placement]
    task = random_task(rng, len(ranks), rng.randint(1, 7), split=True, room=True, stage_ranks=ranks)
    if seed % 2:
        task = task._replace(room_bytes=least_rooms(task))
    for ops in ("BFW", "BWF", "FBW", "FWB", "WFB"):
        for deep_forward, deep_backward, halves in ((1, 0, 1), (0, 1, 1), (0, 0, 0)):
            limits = tuple(rng.randint(1, 7) for _ in ranks)
            policy = Policy(
                tuple(ops), limits, bool(deep_forward), bool(deep_backward), bool(halves), 0.3
            )
            schedule = list_schedule(task, policy)
            check_schedule(schedule, ranks, task.num_microbatches)
            assert fits(task, schedule)


def test_free_sends_and_the_room_of_1f1b_give_1f1b():
    task = equal_stages(4, 0.0, room_bytes=(40, 30, 20, 10))
    found = optimize_orders(task)
    assert (found.name, found.origin) == ("1f1b", "1f1b")
    assert found.step_time == found.lower_bound == 3 * (16 + 3)
    assert found.step_time_without_cap == found.step_time


def test_a_deeper_warmup_hides_sends_and_its_bytes_are_said():
    task = equal_stages(4, 0.9)
    found = optimize_orders(task)
    assert found.step_time == pytest.approx(found.lower_bound, rel=1e-9)
    assert found.step_time == pytest.approx(3 * 16 + 3 * (3 + 2 * 0.9), rel=1e-9)
    assert found.named["1f1b"] > 1.2 * found.step_time
    assert max(found.peak_stash_bytes) > 40


def test_what_the_cap_costs_is_the_step_with_it_less_the_step_without():
    task = equal_stages(4, 0.9, room_bytes=(40, 40, 40, 40))
    found = optimize_orders(task)
    assert found.step_time > found.step_time_without_cap
    assert found.step_time_without_cap == pytest.approx(
        optimize_orders(task._replace(room_bytes=None)).step_time, rel=1e-9
    )
    assert found.step_time <= found.named["1f1b"] * ROUNDING


def test_room_between_two_schedules_is_used():
    """Half way between the room of 1F1B and that of its deepest warmup, there is a schedule between."""
    task = equal_stages(8, 0.9, num_microbatches=32, room_bytes=(120,) * 8)
    found = optimize_orders(task)
    assert found.name == "auto"
    assert found.step_time < 0.85 * found.named["1f1b"]


def test_split_backwards_fill_the_idle_time():
    whole = optimize_orders(equal_stages(4, 0.0))
    split = optimize_orders(equal_stages(4, 0.0, split=True))
    assert split.step_time == pytest.approx(3 * 16 + 3, rel=1e-9)
    assert split.step_time < whole.step_time


def test_the_local_search_mends_a_bad_order():
    task = equal_stages(2, 0.0, num_microbatches=4)
    bad = (
        parse_order("0F0 0B0 0F1 0B1 0F2 0B2 0F3 0B3"),
        parse_order("1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"),
    )
    found = optimize_orders(task, named={"one at a time": bad})
    assert found.named == {"one at a time": 24.0} and found.step_time == 15.0
    clock = Clock(task)
    clock.actions_left = 100_000
    _, step = LocalSearch(clock, 0.0, None, 0).improve(bad)
    assert step == 15.0


def test_the_same_seed_gives_the_same_orders_and_a_deadline_in_the_past_still_gives_some():
    task = random_task(random.Random(3), 4, 8, split=True, room=True)
    first = optimize_orders(task, actions=50_000, seed=5)
    assert optimize_orders(task, actions=50_000, seed=5) == first
    hurried = optimize_orders(task, deadline=time.perf_counter())
    check_schedule(hurried.schedule, task.stage_ranks, 8)
    assert fits(task, hurried.schedule)
    assert all(hurried.step_time <= step * ROUNDING for step in hurried.named.values())


def test_room_for_less_than_a_microbatch_is_refused_with_what_it_needs():
    task = equal_stages(2, 0.0, room_bytes=(40, 9))
    with pytest.raises(InfeasibleError, match=r"rank 1 has room for 9 .* keeps 10"):
        optimize_orders(task)
    assert least_step(task) == float("inf")


def test_gpipe_with_all_its_room_meets_the_bound():
    """Whole backwards of equal stages without sends: no order is faster than (m + k - 1) x 3 s."""
    for k, m in ((1, 1), (2, 5), (5, 7)):
        assert least_step(equal_stages(k, 0.0, num_microbatches=m)) == 3 * (m + k - 1)


def test_the_memory_bound_is_the_round_trip_over_the_microbatches_in_flight():
    """One in flight on stage 0: every microbatch goes all the way alone."""
    task = equal_stages(3, 0.5, num_microbatches=5, room_bytes=(10, 30, 30))
    assert least_step(task) == pytest.approx(5 * (9 + 4 * 0.5), rel=1e-12)
    assert optimize_orders(task).step_time == pytest.approx(least_step(task), rel=1e-12)
