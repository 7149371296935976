"""WPipe's runs, checked against the plain model in which the first half of the stages is older."""

import pytest

from autopart.runtime.engine.run_settings import RunSettings
from tests.runtime.engine.test_placements import Ranks, plan
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run, run_with_still_older_weights
from tests.support.runtime.rank_pool import RankPool

LOOP = {2: [[0], [1], [0], [1]], 4: [[0], [1], [2], [3]] * 2}


def checked(pool: RankPool, ranks: Ranks, n: int, **options: object) -> None:
    """Check three batches of n microbatches; raises if anything differs."""
    of = plan("zoo:mlp-tiny", ranks, num_microbatches=n)
    asked = RunSettings(model=of.origin.model, check=True, steps=3, asynchronous="wpipe", **options)
    result = pool.call(run, of, asked)[0]
    assert result.check is not None and result.asynchronous is not None
    assert max(result.check.losses, result.check.gradients, result.check.parameters) <= 1e-10
    assert result.check.first_update is None or result.check.first_update <= 1e-11
    half = len(ranks) // 2
    assert result.asynchronous.predicted_versions == (2,) * half + (1,) * half
    assert result.asynchronous.versions == result.asynchronous.predicted_versions


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [*long_tests("sgd"), "sgd-momentum", *long_tests("adamw")])
def test_two_ranks_equal_the_plain_model_with_one_group_behind(two_ranks: RankPool, optimizer: str):
    checked(two_ranks, LOOP[2], 5, optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, *long_tests(11)])
def test_four_ranks_equal_the_plain_model_with_one_group_behind(four_ranks: RankPool, n: int):
    checked(four_ranks, LOOP[4], n)


@pytest.mark.slow
def test_the_check_notices_a_second_group_that_is_behind_too(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", LOOP[2])
    asked = RunSettings(model=of.origin.model, check=True, steps=3, asynchronous="wpipe")
    complaint, _ = two_ranks.call(run_with_still_older_weights, of, asked)
    assert complaint.startswith("the pipeline differs from the plain model with the same older")
