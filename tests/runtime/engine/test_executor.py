"""The executor against the plain model, on processes that share a pool.

The plans have uneven cuts, also through skips and between tied layers. Each case trains a few steps
with `check`: losses, gradients and parameters are compared with the plain model.
"""

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from autopart.records.plan import Plan, schedule_of
from autopart.records.run_result import CheckResult, RunResult
from autopart.runtime.engine.run_settings import RunSettings
from autopart.schedules.actions import Schedule
from tests.support.runtime.on_ranks import (
    complaint_of,
    live_parameters,
    ours_and_torchs,
    reported,
    run,
    run_with_double_loss,
    run_without_sums,
)
from tests.support.runtime.orders import valid_orders
from tests.support.runtime.plans import capture, plan_for, with_orders
from tests.support.runtime.rank_pool import RankPool

captured = cache(capture)


def plan(model: str, *cuts: float, dtype: str = "float32", **options: str | int) -> Plan:
    return plan_for(model, captured(model, 2, dtype), cuts, dtype=dtype, **options)


def checked(pool: RankPool, of: Plan, **options: str | int | None) -> RunResult:
    """The result of a checked run; the check raises if anything differs."""
    settings = RunSettings(model=of.origin.model, check=True, **{"steps": 2, **options})
    results = pool.call(run, of, settings)
    assert results[1:] == [None] * (len(results) - 1)
    return results[0]


def check_of(result: RunResult) -> CheckResult:
    assert result.check is not None
    return result.check


def test_tied_weights_on_different_stages_train_as_one_parameter(two_ranks: RankPool):
    result = checked(two_ranks, plan("zoo:gpt2-tiny", 0.3))
    check = check_of(result)
    assert check.gradients <= 1e-6 and check.losses <= 1e-6
    assert check.num_parameters == 100


@pytest.mark.slow
def test_the_check_notices_unsummed_gradients_of_tied_weights(two_ranks: RankPool):
    of = plan("zoo:gpt2-tiny", 0.3)
    settings = RunSettings(model=of.origin.model, check=True, steps=1)
    complaint, other = two_ranks.call(run_without_sums, of, settings)
    assert "the gradient of tokens.weight on rank" in complaint and other == ""


@pytest.mark.slow
def test_the_check_notices_a_loss_that_is_a_ten_thousandth_too_large(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", 0.5)
    settings = RunSettings(model=of.origin.model, check=True, steps=1)
    complaint, _ = two_ranks.call(run_with_double_loss, of, settings)
    assert "by 0.0001 (1e-05 allowed), and 31 more" in complaint


@pytest.mark.slow
def test_skips_over_many_layers_cross_the_cut(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan("zoo:unet-tiny", 0.5, schedule="gpipe")))
    assert check.gradients <= 1e-6


@pytest.mark.slow
def test_batchnorm_statistics_equal_the_plain_model_s(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan("zoo:resnet-tiny", 0.6)))
    assert check.num_buffers == 87


@pytest.mark.slow
def test_in_float64_gradients_agree_to_twelve_digits(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan("zoo:encdec-tiny", 0.7, dtype="float64")))
    assert check.tolerance == 1e-12 and check.gradients <= 1e-12


@pytest.mark.slow
def test_two_stages_of_two_replicas_train_as_one_model(four_ranks: RankPool):
    check = check_of(checked(four_ranks, plan("zoo:mlp-tiny", 0.4, replicas=2), steps=3))
    assert check.gradients <= 1e-6
    assert any("buffers were not compared" in note for note in check.notes)


@pytest.mark.slow
def test_adamw_and_more_microbatches_than_stages(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", 0.25, num_microbatches=7)
    result = checked(two_ranks, of, steps=3, optimizer="adamw")
    assert result.optimizer == "adamw" and result.losses[2] < result.losses[0]


def test_a_rank_holds_the_weights_of_its_own_stage_only(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", 0.25)
    settings = RunSettings(model=of.origin.model, steps=1)
    (first, first_own), (second, second_own) = two_ranks.call(live_parameters, of, settings)
    assert (first, second) == (first_own, second_own)
    assert first_own + second_own == 16 * (192 * 192 + 192)


def test_the_trace_has_the_plan_s_order_and_ascending_times(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", 0.5)
    result = checked(two_ranks, of)
    for order, slices in zip(schedule_of(of), result.trace, strict=True):
        assert [s.action for s in slices] == list(map(str, order))
        assert all(s.start <= s.ready <= s.end for s in slices)
        assert all(a.end <= b.start for a, b in pairwise(slices))


def test_measured_times_stand_beside_the_prediction(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", 0.5)
    result = checked(two_ranks, of, steps=3)
    assert len(result.step_times) == len(result.losses) == 3
    assert result.step_time == pytest.approx(sum(sorted(result.step_times[1:])) / 2)
    assert result.error == pytest.approx(1.0 / result.step_time - 1.0)
    for stage, planned in zip(result.stages, of.prediction.stages, strict=True):
        assert stage.predicted == planned
        # A busy machine may stretch most forwards: their median is not below a mean of all actions.
        assert 0 < stage.forward_time < result.step_time
        assert 0 < stage.busy_time < result.step_time
        assert stage.peak_bytes > 1 << 20


def test_each_step_is_reported_with_its_speed(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", 0.5)
    told, _ = two_ranks.call(reported, of, RunSettings(model=of.origin.model, steps=2))
    assert [(done, total) for done, total, _ in told] == [(1, 2), (2, 2)]
    assert all(float(text.removesuffix(" samples/s")) > 0 for _, _, text in told)


@pytest.mark.slow
def test_gradients_equal_those_from_torch_s_own_schedule(two_ranks: RankPool):
    for ours, torchs in two_ranks.call(ours_and_torchs, plan("zoo:mlp-tiny", 0.6)):
        assert ours.keys() == torchs.keys() and len(ours) > 0
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, torchs[name], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(valid_orders([[0], [1]], 4))
def test_any_valid_order_trains_the_same(two_ranks: RankPool, schedule: Schedule):
    of = with_orders(plan("zoo:mlp-tiny", 0.6, dtype="float64"), schedule)
    assert check_of(checked(two_ranks, of, steps=1)).gradients <= 1e-12


AWKWARD = "tests/support/models/awkward.py:"


@pytest.mark.slow
def test_a_frozen_first_stage_gets_and_sends_no_gradients(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan(AWKWARD + "frozen_start", 0.4), optimizer="adamw"))
    assert check.num_parameters == 8


@pytest.mark.slow
def test_a_parameter_that_does_not_influence_the_loss_stays_unchanged(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan(AWKWARD + "partly_used", 0.4), optimizer="adamw"))
    assert check.num_parameters == 8


@pytest.mark.slow
def test_integers_and_booleans_cross_the_cut(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan(AWKWARD + "masked", 0.5, dtype="float64")))
    assert check.gradients <= 1e-12


@pytest.mark.slow
def test_dropout_is_seeded_in_a_check_and_the_result_says_so(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan(AWKWARD + "with_dropout", 0.5), steps=1))
    assert check.dropouts == 0
    said = "random numbers were seeded alike in both models (bernoulli_ 16 times)"
    assert said in check.notes


def test_without_a_check_dropout_is_on(two_ranks: RankPool):
    of = plan(AWKWARD + "with_dropout", 0.5)
    dropping = two_ranks.call(run, of, RunSettings(model=of.origin.model, steps=1))[0]
    assert dropping.check is None
    assert dropping.losses != checked(two_ranks, of, steps=1).losses


def test_weights_that_differ_between_ranks_are_refused(two_ranks: RankPool):
    of = plan(AWKWARD + "unseeded", 0.5)
    settings = RunSettings(model=of.origin.model, steps=1)
    for complaint in two_ranks.call(complaint_of, of, settings):
        assert "rank 1 built other weights than rank 0" in complaint and "'2.0.bias'" in complaint


OPAQUE = "tests/support/models/opaque.py:"


@pytest.mark.parametrize(
    "name",
    [
        "routed",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("hooked", "lazy", "overwriting")),
    ],
)
def test_a_model_with_code_that_no_graph_can_hold_trains_in_two_stages(
    two_ranks: RankPool, name: str
):
    check = check_of(checked(two_ranks, plan(OPAQUE + name, 0.5, dtype="float64")))
    assert check.gradients <= 1e-12


@pytest.mark.slow
def test_a_module_that_cannot_be_captured_runs_uncaptured(two_ranks: RankPool):
    check = check_of(checked(two_ranks, plan(AWKWARD + "data_dependent", 0.5)))
    assert check.num_parameters == 10
