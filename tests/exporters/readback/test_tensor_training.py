"""torchtitan and NeMo AutoModel train plans with tensor degree 2 like the unsplit model, on four processes.

Both shard with torch's DTensor: torchtitan by its own rules, AutoModel by torch's `parallelize_module`.
"""

from pathlib import Path

import pytest

from tests.exporters.readback.conftest import Needs
from tests.support.exporters.language import language_plan, recomputing
from tests.support.readback.ranks import run_ranks
from tests.support.readback.trained import assert_same, assert_sharded
from tests.support.tensor_plans import in_groups


@pytest.mark.parametrize(
    ("counts", "schedule", "recomputed", "sequence_parallel"),
    [([1, 2], "1f1b", (), False), ([1, 1, 2, 1], "interleaved-1f1b", (0, 3), True)],
)
def test_torchtitan_trains_two_stages_of_two_gpus(
    needs: Needs,
    tmp_path: Path,
    counts: list[int],
    schedule: str,
    recomputed: tuple[int, ...],
    sequence_parallel: bool,
) -> None:
    needs("torchtitan", "0.3")
    plan = recomputing(language_plan(counts, 2, schedule, 4), *recomputed)
    grouped = in_groups(plan, 2, sequence_parallel=sequence_parallel)
    run_ranks("train_torchtitan", grouped, "torchtitan", tmp_path)
    once = plan.num_microbatches
    layers = range(sum(counts))
    assert_same(tmp_path, {str(n): once * (1 + (n in recomputed)) for n in layers})
    assert_sharded(tmp_path, 2)


def test_automodel_trains_two_stages_of_two_gpus(needs: Needs, tmp_path: Path) -> None:
    needs("automodel")
    plan = recomputing(language_plan([1, 2], 2, "1f1b", 4), 0, 1, 2)
    run_ranks("train_automodel", in_groups(plan, 2), "automodel", tmp_path)
    assert_same(tmp_path, {str(n): 2 * plan.num_microbatches for n in range(3)})
    assert_sharded(tmp_path, 2)
