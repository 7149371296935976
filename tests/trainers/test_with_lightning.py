"""A LightningModule that knows of no plan has the same losses under one."""

from pathlib import Path

import pytest

from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.trainers import lit, plan_of, planned_lit

pytestmark = pytest.mark.slow


def test_a_lightning_module_is_the_same_under_a_plan_and_continues(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    log = lit(tmp_path / "plain", None, devices=1)
    assert len(log) == 8 + 4
    of_ranks = two_ranks.call(planned_lit, plan_of(), tmp_path / "planned")
    for found in of_ranks:
        assert found == [pytest.approx(line, rel=1e-5) for line in log]
    # Each continues from the other's checkpoint. Lightning starts the epoch's data again then.
    at, expected = "two-step=2.ckpt", None
    for made in ("plain", "planned"):
        whole = lit(tmp_path / f"{made} again", tmp_path / made / at, devices=1)
        expected = expected or whole
        assert whole == [pytest.approx(line, rel=1e-5) for line in expected] and len(whole) >= 4
    again = two_ranks.call(planned_lit, plan_of(0.7), tmp_path / "other", tmp_path / "plain" / at)
    assert again[0] == [pytest.approx(line, rel=1e-5) for line in expected or []]
