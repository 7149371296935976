import random

import pytest

from autopart.cost.cuts import all_cuts, partition_of
from autopart.pricing import fits, price
from autopart.records.layouts import layouts, shapes
from autopart.records.problem import CUSTOM
from autopart.schedules.catalogue import make_schedule
from autopart.solvers.orders.evaluation import fits as stash_fits
from autopart.solvers.orders.of_layout import Known, order_problem, orders_of_layout
from tests.search.test_own_orders import NAMED, asking
from tests.support.problems import random_problem
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9


def decisions(seed: int):
    """Named schedules that fit on random partitions, with their problem."""
    rng = random.Random(seed)
    problem = asking(random_problem(rng, branching=False, tight=True), NAMED)
    cuts = all_cuts(problem.graph)
    places = [place for shape in shapes(problem) for place in layouts(problem, *shape)]
    for layout in rng.sample(places, min(len(places), 12)):
        inner = range(1, len(cuts.ahead) - 1)
        k = len(layout.stage_ranks)
        if layout.schedule == CUSTOM or k < 2 or len(inner) < k - 1:
            continue
        path = (0, *sorted(rng.sample(inner, k - 1)), len(cuts.ahead) - 1)
        decision = price(problem, layout, partition_of(cuts, path))
        if fits(problem, decision):
            yield problem, decision


@pytest.mark.parametrize("seed", seeds(12, 100))
def test_own_orders_are_no_slower_than_the_layout_s_schedule_also_where_the_room_misses_it(
    seed: int,
):
    for problem, decision in decisions(seed):
        found = orders_of_layout(
            problem,
            decision.layout,
            decision.partition,
            split=True,
            known=Known(peak_bytes=decision.prediction.rank_peak_bytes),
            actions=2_000,
        )
        assert found.step_time <= decision.prediction.step_time * ROUNDING


def test_the_room_misses_some_schedules_that_fit():
    """Else the test above would say nothing about the room."""
    assert any(
        not stash_fits(order, named)
        for seed in range(40)
        for problem, decision in decisions(seed)
        for order in [order_problem(problem, decision.layout, decision.partition, split=True)]
        for named in [
            make_schedule(decision.layout.schedule, order.stage_ranks, order.num_microbatches)
        ]
    )
