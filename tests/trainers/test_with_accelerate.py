"""A loop with accelerate has the same losses under a plan as without one."""

from pathlib import Path

import pytest

from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.trainers import (
    accelerate_complaints,
    plain_accelerate,
    plan_of,
    planned_accelerate,
)

pytestmark = pytest.mark.slow


def test_a_loop_with_accelerate_is_the_same_under_a_plan_and_continues(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    log, names = plain_accelerate(tmp_path / "plain")
    of_ranks = two_ranks.call(planned_accelerate, plan_of(), tmp_path / "planned")
    for found, saved in of_ranks:
        assert found == [pytest.approx(line, rel=1e-5) for line in log]
        assert set(names) <= set(saved)
    # The saved state continues without a plan, and that of a plain run under another plan.
    whole, _ = plain_accelerate(tmp_path, tmp_path / "planned")
    assert whole == [pytest.approx(line, rel=1e-5) for line in log[4:]]
    again = two_ranks.call(planned_accelerate, plan_of(0.7), tmp_path, tmp_path / "plain")
    assert again[0][0] == [pytest.approx(line, rel=1e-5) for line in log[4:]]


def test_what_a_planned_model_cannot_do_is_refused_in_one_line(two_ranks: RankPool) -> None:
    expected = [
        "UsageError: backward takes the loss that the model returned, unchanged",
        "UsageError: a plan is for one model",
        "UsageError: the plan's batch has 8 samples (4 microbatches of 2), and this one has 3",
        "UsageError: call the model with names",
        "UsageError: the plan's batches have input_ids, labels, and this one has labels, input_ids, att",
        "UsageError: the example has 1 sample, and the plan's microbatches have 2",
    ]
    for said in two_ranks.call(accelerate_complaints, plan_of()):
        for told, start in zip(said, expected, strict=True):
            assert told.startswith(start) and "\n" not in told, told
