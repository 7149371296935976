"""Plans that minimise the period: solved, verified, shown and refused."""

import random

import msgspec
import pytest

from autopart import solve, verify
from autopart.errors import AutopartError
from autopart.records.cluster import Link
from autopart.records.plan import Plan
from autopart.records.problem import CUSTOM, Objective
from autopart.records.profile import Profile
from autopart.report.plan_summary import plan_summary
from autopart.report.plan_table import figures
from autopart.report.step_summary import simulate_summary
from autopart.report.step_table import rank_table
from autopart.simulator.period import period_of_plan
from autopart.simulator.timeline import simulate_plan
from tests.support.problems import chain_graph, cluster, layer, profile


def model() -> Profile:
    """Eight layers with unlike seconds, whose updates take long."""
    layers = [
        layer(
            f"l{at}",
            forward_time=1.0 + 0.1 * (at % 3),
            input_grad_time=1.0,
            weight_grad_time=1.0,
            update_time=0.5,
        )
        for at in range(8)
    ]
    return profile(chain_graph(*layers))


pytestmark = pytest.mark.usefixtures("processor_clock")


def made(objective: Objective, schedule: str, **more: object) -> Plan:
    fast = Link(bandwidth=1e15, latency=1e-3)
    machine = cluster(1, 4, intra_node=fast, inter_node=fast)
    words = {"num_microbatches": 8, "num_replicas": 1, "num_stages": 4, "time_limit": 20.0} | more
    return solve(model(), machine, objective=objective, schedule=schedule, **words)  # pyright: ignore


def test_a_plan_has_its_exact_period_and_a_bound_that_verify_proves():
    plan, step = made("period", "zb-h2"), made("step", "zb-h2")
    period = plan.prediction.period
    assert period is not msgspec.UNSET
    assert period == period_of_plan(plan) < step.prediction.step_time
    assert step.prediction.period is msgspec.UNSET
    assert plan.certificate.lower_bound <= period
    assert plan.certificate.gap == pytest.approx(period / plan.certificate.lower_bound - 1)
    assert all(check.passed for check in verify(plan, model()))


def test_verify_refuses_another_period():
    plan = made("period", "1f1b")
    assert plan.prediction.period is not msgspec.UNSET
    said = msgspec.structs.replace(plan.prediction, period=plan.prediction.period * 0.99)
    last = verify(msgspec.structs.replace(plan, prediction=said), model())[-1]
    assert (last.name, last.passed) == ("prediction", False)
    assert "prediction.period" in last.detail
    # A claim to have minimised the step has another bound, and needs no period.
    other = verify(msgspec.structs.replace(plan, objective="step"), model())[-1]
    assert not other.passed


@pytest.mark.slow
def test_own_orders_have_no_longer_period_than_named_schedules():
    own = made("period", "auto", time_limit=8.0)
    named = [made("period", name) for name in ("1f1b", "zb-h1", "zb-h2")]
    periods = [plan.prediction.period for plan in (own, *named)]
    assert min(periods) == periods[0]  # pyright: ignore
    assert all(check.passed for check in verify(own, model()))


@pytest.mark.slow
def test_own_orders_of_unlike_stages_are_verified():
    """No named schedule is as good here: the orders are the plan's own."""
    rng = random.Random(2)
    layers = [
        layer(
            f"l{at}",
            forward_time=1.0 + rng.random(),
            input_grad_time=1.0 + rng.random(),
            weight_grad_time=0.5 + rng.random(),
            update_time=0.2,
        )
        for at in range(3)
    ]
    own, machine = (
        profile(chain_graph(*layers)),
        cluster(1, 3, intra_node=Link(bandwidth=1e15, latency=0.8)),
    )
    fixed = {"num_microbatches": 4, "num_replicas": 1, "num_stages": 3, "stages_per_rank": 1}
    plan = solve(own, machine, objective="period", schedule="auto", time_limit=20.0, **fixed)  # pyright: ignore
    assert plan.schedule == CUSTOM
    assert all(check.passed for check in verify(plan, own))
    source = plan.origin.orders
    assert source is not None
    assert source.step_time_without_cap <= plan.prediction.period  # pyright: ignore
    # Another period without the memory limit is refused.
    other = msgspec.structs.replace(source, step_time_without_cap=1.0)
    origin = msgspec.structs.replace(plan.origin, orders=other)
    last = verify(msgspec.structs.replace(plan, origin=origin), own)[-1]
    assert (last.passed, "the period without the memory limit is 1.0 s" in last.detail) == (
        False,
        True,
    )


def test_show_and_simulate_have_the_period_beside_the_step():
    plan = made("period", "zb-h2")
    assert plan_summary(plan, "plan.json").period == plan.prediction.period
    assert any("from step to step, back to back" in line for line in figures(plan))
    summary = simulate_summary(plan, simulate_plan(plan), "plan.json")
    assert summary.period == plan.prediction.period
    assert "back to back" in str(rank_table(summary).title)
    other = simulate_summary(made("step", "1f1b"), simulate_plan(plan), "plan.json")
    assert other.period is msgspec.UNSET
    assert "back to back" not in str(rank_table(other).title)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"replicas_per_stage": True, "num_replicas": None}, "the period needs equal replicas"),
        ({"tensor": "per-stage"}, "needs the step, not the period"),
        ({"target": "megatron"}, "--objective period is for autopart run"),
    ],
)
def test_a_period_is_refused_where_steps_do_not_run_back_to_back(
    words: dict[str, object], reason: str
):
    with pytest.raises(AutopartError, match=reason):
        made("period", "1f1b", **words)
