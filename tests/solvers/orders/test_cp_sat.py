"""CP-SAT's polish and its word on the bound. Without OR-tools only the first test runs."""

import random
import sys

import pytest

from autopart.bounds.any_order_partition import least_step
from autopart.schedules.actions import parse_order
from autopart.schedules.check import check_schedule
from autopart.solvers.orders import cp_sat
from autopart.solvers.orders.action_numbers import schedule_of
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.evaluation import Clock, fits
from autopart.solvers.orders.list_scheduling import Policy, list_schedule
from autopart.solvers.orders.optimizer import optimize_orders
from autopart.solvers.orders.order_times import OrderTimes
from tests.solvers.orders.test_optimizer import equal_stages
from tests.support.orders_oracle import PLACEMENTS, best_step, random_task, small_task
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9
NEAR = 1 - 1e-3
"""CP-SAT rounds seconds down to whole units of the step."""

needs_ortools = pytest.mark.skipif(
    not cp_sat.is_installed(), reason="OR-tools is missing: pip install autopart[orders]"
)


def test_without_ortools_the_optimizer_needs_none_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cp_sat, "is_installed", lambda: False)
    loaded = {name for name in sys.modules if name.startswith("ortools")}
    found = optimize_orders(equal_stages(3, 0.4, num_microbatches=4, split=True), actions=50_000)
    assert found.said_bound is None and "CP-SAT" not in found.origin
    assert {name for name in sys.modules if name.startswith("ortools")} == loaded


@needs_ortools
@pytest.mark.parametrize("seed", seeds(10, 60))
def test_a_polished_order_is_complete_fits_and_is_no_slower(seed: int):
    rng = random.Random(seed)
    ranks = PLACEMENTS[rng.choice(list(PLACEMENTS))]
    m = rng.randint(2, 5)
    task = random_task(rng, len(ranks), m, split=True, room=True, stage_ranks=ranks)
    split = frozenset(s for s in range(len(ranks)) if rng.random() < 0.5)
    start = list_schedule(task, Policy(tuple("BWF"), (m,) * len(ranks), split=split))
    times = OrderTimes(task)
    numbers = times.numbers_of(start)
    times.take(*numbers)
    begun = times.step
    polished = schedule_of(task, cp_sat.polish(times, numbers, least_step(task), Effort()))
    check_schedule(polished, ranks, m)
    assert fits(task, polished)
    assert Clock(task).run(polished) <= begun * ROUNDING


@needs_ortools
@pytest.mark.parametrize("seed", seeds(12, 80))
def test_cp_sat_s_bound_lies_between_ours_and_the_best_of_all_orders(seed: int):
    task = small_task(random.Random(500 + seed))
    best = best_step(task, split=task.split)
    start = optimize_orders(task, actions=2_000)
    times = OrderTimes(task)
    numbers = times.numbers_of(start.schedule)
    said = cp_sat.bound_of(times, numbers, least_step(task), Effort())
    assert said is not None
    assert least_step(task) * NEAR <= said <= best * ROUNDING
    # The model leaves out the queue of a link. Without sends, its bound is the best step.
    if not any(stage.send_time or stage.send_back_time for stage in task.stages):
        assert said >= best * NEAR


@needs_ortools
def test_a_bad_order_is_polished_up_to_the_bound():
    task = equal_stages(2, 0.0, num_microbatches=4)
    bad = (
        parse_order("0F0 0B0 0F1 0B1 0F2 0B2 0F3 0B3"),
        parse_order("1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"),
    )
    times = OrderTimes(task)
    polished = cp_sat.polish(times, times.numbers_of(bad), least_step(task), Effort())
    assert Clock(task).run(schedule_of(task, polished)) == 15.0


@needs_ortools
def test_windows_cover_every_action_and_have_about_the_asked_size():
    task = equal_stages(4, 0.1, num_microbatches=10)
    times = OrderTimes(task)
    times.take(*times.numbers_of(list_schedule(task, Policy(tuple("BF"), (4, 3, 2, 1)))))
    windows = cp_sat.windows(times, 20)
    for rank, order in enumerate(times.orders):
        covered = {at for window in windows for at in range(*window.places[rank])}
        assert covered == set(range(len(order)))
    assert all(window.size <= 24 for window in windows)
