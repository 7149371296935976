"""torchtitan trains its mixture of experts with expert degree 2 like the unsplit model, on four processes."""

from pathlib import Path

from tests.exporters.readback.conftest import Needs
from tests.exporters.test_megatron_groups import with_samples
from tests.support.exporters.language import language_plan
from tests.support.readback.ranks import run_ranks
from tests.support.readback.trained import assert_same, assert_sharded
from tests.support.tensor_plans import in_groups


def test_torchtitan_trains_two_stages_with_shared_experts(needs: Needs, tmp_path: Path) -> None:
    """Each process has half of each microbatch, and half of the experts."""
    needs("torchtitan", "0.3")
    plan = with_samples(language_plan([1, 1], 2, "1f1b", 2), 4)
    run_ranks("train_torchtitan", in_groups(plan, 1, expert=2), "torchtitan", tmp_path)
    assert_same(tmp_path, dict.fromkeys("01", plan.num_microbatches))
    assert_sharded(tmp_path, 2)
