"""Orders and activation policies chosen together."""

import itertools

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.cost.in_flight import stages_in_flight
from autopart.errors import InfeasibleError
from autopart.pricing import fits, price
from autopart.records.layouts import Layout
from autopart.records.plan import OrderSource, Plan, schedule_of, stage_ranks
from autopart.records.problem import CUSTOM, SCHEDULES
from autopart.schedules.turns import in_turns
from autopart.search.demands import make_problem
from autopart.search.joint_choices import MOST_RUNGS, ladder, with_faster_policies
from autopart.search.layout_search import LayoutSearch
from autopart.search.options import SolveOptions
from tests.support.long_tests import long_tests
from tests.support.seeds import seeds
from tests.support.short_memory import ShortOfMemory, short_of_memory

NAMED = tuple(name for name in SCHEDULES if name != CUSTOM)


def fastest_named(asked: ShortOfMemory) -> float:
    """The shortest step in seconds over all named schedules, each searched alone."""
    steps: list[float] = []
    for name in NAMED:
        try:
            steps.append(asked.solved(name).prediction.step_time)
        except InfeasibleError:
            continue
    return min(steps)


def recomputed(plan: Plan) -> int:
    return sum(len(stage.recompute) for stage in plan.stages)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, *long_tests(*range(40))])
def test_schedule_auto_is_never_slower_than_a_named_schedule_that_recomputes_too(seed: int):
    asked = short_of_memory(seed)
    plan = asked.solved("auto")
    assert plan.prediction.step_time <= fastest_named(asked) * (1 + 1e-9)
    assert all(check.passed for check in verify(plan, asked.given))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, *long_tests(1, 3)])
def test_own_orders_recompute_and_beat_every_named_schedule(seed: int):
    asked = short_of_memory(seed)
    plan = asked.solved("auto")
    assert plan.schedule == CUSTOM and recomputed(plan) > 0
    assert plan.prediction.step_time < fastest_named(asked) * 0.99
    assert "custom" not in plan.certificate.assumes
    passed = {check.name: check.passed for check in verify(plan, asked.given)}
    assert all(passed.values())
    # Memory is that of the true counts: with the stash of a recomputed layer kept it would not fit.
    counts = stages_in_flight(schedule_of(plan), stage_ranks(plan))
    assert len(counts) == len(plan.stages)
    assert max(plan.prediction.rank_peak_bytes) <= asked.machine.memory_bytes
    kept = tuple(msgspec.structs.replace(stage, recompute=()) for stage in plan.stages)
    altered = msgspec.structs.replace(plan, stages=kept)
    assert not all(check.passed for check in verify(altered, asked.given))


def searched(asked: ShortOfMemory) -> LayoutSearch:
    options = SolveOptions(schedule="auto", recompute="auto", num_replicas=1)
    problem = make_problem(asked.given, asked.machine, asked.num_microbatches, options)
    return LayoutSearch(problem, "auto")


def _layout(asked: ShortOfMemory, ranks: int) -> Layout:
    """One pipeline with one stage on each rank, and orders of its own."""
    return Layout(
        schedule=CUSTOM,
        stage_ranks=tuple((rank,) for rank in range(ranks)),
        num_microbatches=asked.num_microbatches,
    )


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_the_rungs_of_a_ladder_have_policies_of_their_own_and_fit_under_their_orders(seed: int):
    asked = short_of_memory(seed)
    found = searched(asked)
    layers, ranks = len(asked.given.graph.layers), asked.machine.gpus_per_node
    ends = [layers * at // ranks for at in range(ranks + 1)]
    partition = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))
    layout = _layout(asked, ranks)
    rungs = ladder(found, layout, partition)
    assert len({rung.known.policies for rung in rungs}) == len(rungs) <= MOST_RUNGS
    for rung in rungs:
        given = rung.known.given
        assert (given is None) == (rung.step == float("inf"))
        if given is not None:
            own = price(found.problem, layout, partition, given.schedule, rung.known.policies)
            assert fits(found.problem, own)
            assert own.prediction.step_time == pytest.approx(rung.step)
            assert rung.bound <= rung.step * (1 + 1e-9)


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_policies_for_given_orders_are_faster_or_there_are_none(seed: int):
    asked = short_of_memory(seed)
    found = searched(asked)
    layers = len(asked.given.graph.layers)
    partition = (tuple(range(layers // 2)), tuple(range(layers // 2, layers)))
    layout = _layout(asked, 2)
    orders = in_turns(layout.stage_ranks, asked.num_microbatches, 1)
    # Everything is recomputed, though one microbatch at a time needs less of that.
    options = SolveOptions(schedule="auto", recompute="always", num_replicas=1)
    always = make_problem(asked.given, asked.machine, asked.num_microbatches, options)
    source = OrderSource(method="in turns", step_time_without_cap=1.0)
    start = price(always, layout, partition, orders)._replace(order_source=source)
    faster = with_faster_policies(found.problem, start)
    best = price(found.problem, layout, partition, orders)
    if not fits(found.problem, best):
        assert faster is None
    elif faster is None:
        assert start.prediction.step_time <= best.prediction.step_time * (1 + 1e-9)
    else:
        assert fits(found.problem, faster)
        assert faster.prediction.step_time < start.prediction.step_time
        assert faster.prediction.step_time <= best.prediction.step_time * (1 + 1e-9)
