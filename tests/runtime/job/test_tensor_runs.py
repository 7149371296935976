"""Plans with a tensor degree train as the plain model."""

from functools import cache

import pytest

from autopart.records.run_result import CheckResult
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import in_groups, run_groups

captured = cache(capture)


def checked(
    pool: RankPool,
    model: str,
    degree: int,
    *cuts: float,
    sequence_parallel: bool = False,
    **options,
) -> CheckResult:
    """The check after two steps; it raises if anything differs from the plain model."""
    of = plan_for(model, captured(model, 2, "float32"), cuts, **options)
    plan = in_groups(of, degree, sequence_parallel=sequence_parallel)
    result = pool.call(run_groups, plan, RunSettings(model=model, steps=2, check=True))[0]
    assert result is not None and result.check is not None
    return result.check


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("model", ["zoo:llama-tiny", "zoo:gpt2-tiny"])
def test_two_stages_of_tensor_groups_train_as_the_plain_model(
    four_ranks: RankPool, model: str, sequence_parallel: bool
) -> None:
    check = checked(four_ranks, model, 2, 0.5, sequence_parallel=sequence_parallel)
    assert check.losses <= 1e-5 and check.gradients <= 1e-5
