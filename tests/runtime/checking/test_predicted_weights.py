"""Runs with predicted weights, checked against the plain model that predicts them too."""

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.records.run_result import CheckResult
from autopart.runtime.engine.run_settings import RunSettings
from tests.runtime.engine.test_asynchronous import LINE
from tests.runtime.engine.test_placements import plan
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run, run_with_longer_predictions
from tests.support.runtime.rank_pool import RankPool


def checked(pool: RankPool, of: Plan, name: str, **options: object) -> CheckResult:
    """The check after three batches; it raises if anything differs."""
    asked = RunSettings(model=of.origin.model, check=True, steps=3, asynchronous=name, **options)
    result = pool.call(run, of, asked)[0]
    assert result.check is not None and result.asynchronous is not None
    assert result.check.notes[0] == "the plain model was trained with the same predicted weights"
    assert result.asynchronous.versions == result.asynchronous.predicted_versions
    return result.check


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spectrain", *long_tests("xpipe", "pipeoptim")])
def test_a_run_on_two_ranks_equals_the_plain_model_with_the_same_predictions(
    two_ranks: RankPool, name: str
):
    check = checked(two_ranks, plan("zoo:mlp-tiny", LINE[2]), name)
    assert max(check.losses, check.gradients, check.parameters) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", [*long_tests("spectrain"), "xpipe", "pipeoptim"])
@pytest.mark.parametrize("n", [*long_tests(2, 3), 5])
def test_a_run_on_four_ranks_equals_the_plain_model_with_the_same_predictions(
    four_ranks: RankPool, name: str, n: int
):
    check = checked(four_ranks, plan("zoo:mlp-tiny", LINE[4], num_microbatches=n), name)
    assert max(check.losses, check.gradients, check.parameters) <= 1e-10


@pytest.mark.slow
def test_the_check_notices_a_prediction_over_another_distance(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", LINE[2])
    asked = RunSettings(model=of.origin.model, check=True, steps=3, asynchronous="spectrain")
    complaint, _ = two_ranks.call(run_with_longer_predictions, of, asked)
    assert complaint.startswith("the pipeline differs from the plain model with the same predicted")


@pytest.mark.slow
@pytest.mark.parametrize("name", long_tests("xpipe", "pipeoptim"))
def test_offloaded_layers_in_float32_read_the_backward_s_weights(two_ranks: RankPool, name: str):
    of = plan("zoo:resnet-tiny", LINE[2], dtype="float32")
    stages = tuple(msgspec.structs.replace(s, offload=s.layers) for s in of.stages)
    of = msgspec.structs.replace(of, stages=stages)
    check = checked(two_ranks, of, name, optimizer="adamw")
    assert check.gradients <= 1e-5 and check.num_buffers > 0
