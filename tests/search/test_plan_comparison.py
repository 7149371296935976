"""Plans of one model side by side."""

import msgspec
import pytest

from autopart import solve
from autopart.errors import PlanError
from autopart.records.plan import Plan
from autopart.search.plan_comparison import compare_plans, moved_layers, sample_seconds
from tests.support.samples import sample_cluster, sample_profile


def plan_with(**options: object) -> Plan:
    asked = {"num_stages": 2, "num_replicas": 2, "global_batch": 16} | options
    return solve(sample_profile(), sample_cluster(2, 2), **asked)  # pyright: ignore[reportArgumentType]


def test_a_moved_layer_and_the_price_of_the_move() -> None:
    best = plan_with()
    first = [*best.stages[0].layers]
    names = [name for stage in best.stages for name in stage.layers]
    pins = {name: int(at >= len(first) - 1) for at, name in enumerate(names)}
    other = plan_with(pins=pins)
    one, two = compare_plans([best, other])
    assert (one.slower, one.moved, one.changed_policies) == (0.0, (), ())
    assert two.moved == (first[-1],)
    steps = other.prediction.step_time, best.prediction.step_time
    assert two.slower == pytest.approx(steps[0] / steps[1] - 1)
    assert two.slower >= 0


def test_seconds_are_per_sample() -> None:
    small, large = plan_with(), plan_with(global_batch=64)
    _, two = compare_plans([small, large])
    assert two.slower == pytest.approx(sample_seconds(large) / sample_seconds(small) - 1)
    assert sample_seconds(large) == pytest.approx(large.prediction.step_time / 64)
    assert two.slower < 0  # more microbatches have less bubble for each


def test_other_policies_and_other_numbers_of_stages_are_told() -> None:
    plain, always = plan_with(), plan_with(recompute="always")
    assert set(compare_plans([plain, always])[1].changed_policies) == {
        name for stage in always.stages for name in stage.recompute
    }
    assert compare_plans([plain, plan_with(num_stages=4, num_replicas=1)])[1].moved is None


def test_idle_time_is_that_of_the_plans_own_step() -> None:
    plan = plan_with()
    (one,) = compare_plans([plan])
    seconds = plan.prediction.bubble * 4 * plan.prediction.step_time
    assert sum(one.idle.values()) == pytest.approx(seconds)


def test_a_plan_of_another_model_is_refused() -> None:
    plan = plan_with()
    origin = msgspec.structs.replace(plan.origin, graph_hash="f" * 16)
    with pytest.raises(PlanError, match="compare plans of one model"):
        compare_plans([plan, msgspec.structs.replace(plan, origin=origin)])


def test_layers_that_only_one_plan_has_count_as_moved() -> None:
    plan = plan_with()
    stage = msgspec.structs.replace(plan.stages[0], layers=("other", *plan.stages[0].layers[1:]))
    other = msgspec.structs.replace(plan, stages=(stage, *plan.stages[1:]))
    assert moved_layers(plan, other) == (plan.stages[0].layers[0],)


def test_a_plan_that_minimises_the_period_counts_by_its_period() -> None:
    plan = plan_with(objective="period", global_batch=64, num_stages=4, num_replicas=1)
    period = plan.prediction.period
    assert isinstance(period, float) and period < plan.prediction.step_time
    assert sample_seconds(plan) == pytest.approx(period / 64)
    other = plan_with(global_batch=64)
    assert sample_seconds(other) == pytest.approx(other.prediction.step_time / 64)
