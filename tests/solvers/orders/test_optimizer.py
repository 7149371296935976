import random
import time

import pytest

from autopart.bounds.any_order_partition import OrderProblem, least_step
from autopart.errors import InfeasibleError
from autopart.schedules.check import check_schedule
from autopart.simulator.costs import StageTimes
from autopart.simulator.timeline import simulate
from autopart.solvers.orders.evaluation import fits, peak_stash
from autopart.solvers.orders.list_scheduling import Policy, list_schedule
from autopart.solvers.orders.optimizer import optimize_orders
from tests.support.orders_oracle import PLACEMENTS, best_step, random_task, small_task
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9


def equal_stages(num_stages: int, send: float, **fields) -> OrderProblem:
    """Stages on one rank each, with 1 s forward, 2 s backward and 10 bytes per microbatch."""
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
    """For each rank the stash bytes of one microbatch on all its stages."""
    ranks = {rank for own in task.stage_ranks for rank in own}
    return tuple(
        sum(b for b, own in zip(task.stash_bytes, task.stage_ranks, strict=True) if rank in own)
        for rank in sorted(ranks)
    )


@pytest.mark.parametrize("block", seeds(0, 60, slow=2))
def test_the_optimizer_equals_trying_all_orders_and_none_is_faster_than_the_bound(block: int):
    """Each backward on each stage may be whole or split. About 4 of 10 problems allow splits."""
    for seed in range(5 * block, 5 * block + 5):
        task = small_task(random.Random(seed))
        best = best_step(task, split=task.split)
        assert best is not None
        found = optimize_orders(task, actions=100_000)
        assert least_step(task) <= min(best, found.step_time) * ROUNDING, seed
        assert found.step_time <= best * ROUNDING, seed


def test_one_stage_splits_its_backwards_and_another_does_not_where_splitting_costs_seconds():
    """All whole, the step takes 18.58 s. Stage 1 alone gains from a split."""
    task = OrderProblem(
        stages=[
            StageTimes(3.6678425, 4.1558353, 0.067, 0.0, 0.3156841, 2.4261573, 0.9169606),
            StageTimes(0.3045736, 4.5475152, 0.0, 0.067, 0.4001208, 3.7955196, 0.0),
        ],
        stage_ranks=((0,), (1,)),
        num_microbatches=2,
        action_overhead=0.1,
        split=True,
        stash_bytes=(41, 14),
        waiting_bytes=(41, 14),
    )
    found = optimize_orders(task)
    assert found.step_time == pytest.approx(best_step(task, split=True), rel=1e-12)
    assert found.step_time == pytest.approx(16.363, rel=1e-4)
    assert found.step_time == pytest.approx(found.lower_bound, rel=1e-9)
    assert best_step(task, split=False) == pytest.approx(18.578, rel=1e-4)
    ops = [{action.op for action in order} for order in found.schedule]
    assert "B" in ops[0] and ops[1] == {"F", "I", "W"}


@pytest.mark.parametrize("block", seeds(0, 40, slow=1))
def test_no_order_in_thousands_of_small_problems_is_faster_than_the_bound(block: int):
    for seed in range(1000 + 25 * block, 1025 + 25 * block):
        task = small_task(random.Random(seed))
        best = best_step(task, split=task.split)
        assert best is None or least_step(task) <= best * ROUNDING, seed


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(5, 60))
def test_a_result_is_complete_fits_and_has_the_simulated_step(seed: int):
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
        for deep_forward, deep_backward, split in ((1, 0, 1), (0, 1, 1), (0, 0, 0)):
            limits = tuple(rng.randint(1, 7) for _ in ranks)
            stages = frozenset(s for s in range(len(ranks)) if split and rng.random() < 0.7)
            policy = Policy(
                tuple(ops), limits, bool(deep_forward), bool(deep_backward), stages, 0.3
            )
            schedule = list_schedule(task, policy)
            check_schedule(schedule, ranks, task.num_microbatches)
            assert fits(task, schedule)


def test_without_sends_and_with_the_memory_of_1f1b_the_optimizer_returns_1f1b():
    task = equal_stages(4, 0.0, room_bytes=(40, 30, 20, 10))
    found = optimize_orders(task)
    assert (found.name, found.origin) == ("1f1b", "1f1b")
    assert found.step_time == found.lower_bound == 3 * (16 + 3)
    assert found.step_time_without_cap == found.step_time


def test_a_deeper_warm_up_hides_sends_and_needs_more_stash():
    task = equal_stages(4, 0.9)
    found = optimize_orders(task)
    assert found.step_time == pytest.approx(found.lower_bound, rel=1e-9)
    assert found.step_time == pytest.approx(3 * 16 + 3 * (3 + 2 * 0.9), rel=1e-9)
    assert found.named["1f1b"] > 1.2 * found.step_time
    assert max(found.peak_stash_bytes) > 40


@pytest.mark.slow
def test_the_step_without_the_memory_cap_is_the_optimizer_s_step_without_a_cap():
    task = equal_stages(4, 0.9, room_bytes=(40, 40, 40, 40))
    found = optimize_orders(task)
    assert found.step_time > found.step_time_without_cap
    assert found.step_time_without_cap == pytest.approx(
        optimize_orders(task._replace(room_bytes=None)).step_time, rel=1e-9
    )
    assert found.step_time <= found.named["1f1b"] * ROUNDING


@pytest.mark.slow
def test_memory_between_two_schedules_is_used():
    """The cap lies halfway between the stash of 1F1B and of its deepest warm-up."""
    task = equal_stages(8, 0.9, num_microbatches=32, room_bytes=(120,) * 8)
    found = optimize_orders(task, actions=3_000_000)
    assert found.name == "auto"
    assert found.step_time < 0.85 * found.named["1f1b"]


def test_split_backwards_fill_the_idle_time():
    whole = optimize_orders(equal_stages(4, 0.0))
    split = optimize_orders(equal_stages(4, 0.0, split=True))
    assert split.step_time == pytest.approx(3 * 16 + 3, rel=1e-9)
    assert split.step_time < whole.step_time


@pytest.mark.slow
def test_equal_problems_get_equal_orders_and_a_deadline_in_the_past_still_gives_some():
    task = random_task(random.Random(3), 4, 8, split=True, room=True)
    first = optimize_orders(task, actions=50_000)
    assert optimize_orders(task, actions=50_000) == first
    hurried = optimize_orders(task, deadline=time.perf_counter())
    check_schedule(hurried.schedule, task.stage_ranks, 8)
    assert fits(task, hurried.schedule)
    assert all(hurried.step_time <= step * ROUNDING for step in hurried.named.values())


def test_memory_for_less_than_one_microbatch_is_refused_with_the_bytes_needed():
    task = equal_stages(2, 0.0, room_bytes=(40, 9))
    with pytest.raises(InfeasibleError, match=r"rank 1 has room for 9 .* keeps 10"):
        optimize_orders(task)
    assert least_step(task) == float("inf")


def test_the_bound_for_equal_stages_without_sends_is_the_step_of_gpipe():
    """With whole backwards no order is faster than (m + k - 1) x 3 s."""
    for k, m in ((1, 1), (2, 5), (5, 7)):
        assert least_step(equal_stages(k, 0.0, num_microbatches=m)) == 3 * (m + k - 1)


def test_the_memory_bound_is_the_round_trip_over_the_microbatches_in_flight():
    """One microbatch fits on stage 0, so each ends its backward before the next starts."""
    task = equal_stages(3, 0.5, num_microbatches=5, room_bytes=(10, 30, 30))
    assert least_step(task) == pytest.approx(5 * (9 + 4 * 0.5), rel=1e-12)
    assert optimize_orders(task).step_time == pytest.approx(least_step(task), rel=1e-12)


def test_a_stage_without_stash_beside_one_with_stash_is_listed_within_the_room():
    stage = StageTimes(1.0, 2.0, 0.0, 0.0, 0.0, weight_grad_time=1.0)
    task = OrderProblem(
        stages=[stage] * 4,
        stage_ranks=((0,), (1,), (0,), (1,)),
        num_microbatches=4,
        split=True,
        stash_bytes=(0, 3, 3, 0),
        room_bytes=(6, 6),
    )
    found = optimize_orders(task, actions=4_000)
    assert max(found.peak_stash_bytes) <= 6
