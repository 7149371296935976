from itertools import accumulate

import pytest

from autopart.cost.asynchronous import price_asynchronous, price_of
from autopart.errors import PlanError
from autopart.records.cluster import Link
from autopart.schedules.named.asynchronous import ASYNCHRONOUS, WPIPE
from autopart.schedules.named.wpipe import wpipe_orders
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile

SIZES = {"param_bytes": 100, "grad_bytes": 100, "num_trainable": 25, "stash_bytes": 10}
ROW = profile(chain_graph(*(layer(f"l{i}", **SIZES) for i in range(4)), num_bytes=0))


def plan_of(**more: object):
    demands = {"num_microbatches": 8, "num_stages": 4, "num_replicas": 1, "schedule": "1f1b"}
    return solve(ROW, cluster(1, 4), **(demands | more))


def test_equal_stages_start_a_microbatch_once_per_busy_time():
    plan = plan_of()
    prices = price_asynchronous(plan)
    assert [price.schedule for price in prices] == list(ASYNCHRONOUS)
    assert {price.period for price in prices} == {3.0}
    # 8 microbatches take 3 s each; fill and drain add 9 s to the plan's step only.
    assert plan.prediction.step_time == 8 * 3.0 + 9.0


def test_weight_versions_add_to_the_peak():
    plan = plan_of()
    own = [stage.peak_bytes for stage in plan.prediction.stages]
    prices = {price.schedule: price for price in price_asynchronous(plan)}
    stashing = prices["pipedream"]
    assert stashing.in_flight == (4, 3, 2, 1) and stashing.extra_copies == (3, 2, 1, 0)
    assert stashing.peak_bytes == (own[0] + 300, own[1] + 200, own[2] + 100, own[3])
    assert prices["pipedream-2bw"].peak_bytes == tuple(peak + 100 for peak in own)
    assert stashing.forward_delay == 3 and prices["pipedream-2bw"].forward_delay == 1


def test_weight_versions_that_do_not_fit_are_reported():
    least = max(plan_of().prediction.rank_peak_bytes)
    tight = solve(
        ROW,
        cluster(1, 4, memory_bytes=least + 50),
        num_microbatches=8,
        num_stages=4,
        num_replicas=1,
        schedule="1f1b",
    )
    prices = {price.schedule: price for price in price_asynchronous(tight)}
    assert not prices["pipedream"].fits and not prices["pipedream-2bw"].fits


def test_replicas_share_the_microbatches_and_slow_sends_lengthen_the_period():
    pair = plan_of(num_stages=2, num_replicas=2)
    assert {price.period for price in price_asynchronous(pair)} == {3.0}
    graph = chain_graph(*(layer(f"l{i}", **SIZES) for i in range(4)), num_bytes=100)
    slow = solve(
        profile(graph),
        cluster(1, 4, intra_node=Link(bandwidth=100.0)),
        num_microbatches=8,
        num_stages=4,
        num_replicas=1,
        schedule="1f1b",
    )
    # One microbatch goes down all four stages and back, with 4 in flight.
    assert price_asynchronous(slow)[0].period == (4 * 3.0 + 6 * 1.0) / 4


def test_wpipe_shares_ranks_between_two_groups_of_stages():
    """Each layer has 100 bytes of weights, and 10 of stash for each microbatch in flight."""
    plan = solve(
        ROW, cluster(1, 2), num_microbatches=8, num_replicas=1, schedule="interleaved-1f1b"
    )
    price = price_of(plan, WPIPE)
    assert price.extra_copies == (1, 1, 0, 0) and price.in_flight == (6, 5, 2, 1)
    assert price.period == 2 * 3.0  # Each rank has two of four equal layers.
    for rank, order in enumerate(wpipe_orders(2, 8, 5)):
        changes = accumulate(1 if action.op == "F" else -1 for action in order)
        # Weights, gradients and two moments of two layers, and one more version of the first.
        peak = 2 * 400 + 100 + 10 * max(changes)
        assert price.peak_bytes[rank] == price.peak_bytes[rank + 2] == peak


def test_a_plan_with_several_stages_per_rank_is_refused():
    plan = solve(
        ROW, cluster(1, 2), num_microbatches=8, num_replicas=1, schedule="interleaved-1f1b"
    )
    with pytest.raises(PlanError, match="one stage on each rank"):
        price_asynchronous(plan)


def test_one_stage_alone_has_no_second_group():
    plan = solve(
        profile(chain_graph(layer("l0"), layer("l1"))),
        cluster(1, 2),
        num_microbatches=4,
        num_stages=1,
    )
    for price in price_asynchronous(plan):
        assert price.period == pytest.approx(plan.prediction.stages[0].busy_time / 2)
        assert len(price.peak_bytes) == 1
