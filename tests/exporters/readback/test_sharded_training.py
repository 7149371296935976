"""torchtitan and NeMo AutoModel train zero2 and zero3 like the unsplit model, on four processes.

FSDP2 keeps weights gathered after a backward, or frees them, as the plan says.
"""

from pathlib import Path

import pytest

from autopart.exporters.exported import Exported
from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from autopart.records.rank_group import Reduce, Shard
from tests.exporters.readback.conftest import Needs
from tests.support.exporters.language import language_plan
from tests.support.readback import ranks
from tests.support.readback.gathered import gathered_shares
from tests.support.readback.ranks import run_ranks
from tests.support.readback.trained import assert_same, assert_sharded
from tests.support.sharded_plans import sharing

CASES = [("zero2", "1f1b"), ("zero3", "1f1b"), ("zero3", "interleaved-1f1b")]


def sharing_plan(shard: Shard, schedule: str, reduce: Reduce) -> Plan:
    """Two ranks of two processes that share state."""
    counts = [1, 2] if schedule == "1f1b" else [1, 1, 2, 1]
    return sharing(language_plan(counts, 2, schedule, 4), 2, shard, reduce=reduce)


def assert_trained(plan: Plan, folder: Path, *, gathered: float) -> None:
    """Assert equal gradients, parts of the state, and the share of weights that stay after a backward."""
    layers = sum(layer.startswith("transformer.h.") for s in plan.stages for layer in s.layers)
    assert_same(folder, dict.fromkeys(map(str, range(layers)), plan.num_microbatches))
    assert_sharded(folder, 2)
    assert gathered_shares(folder) == {gathered}


@pytest.mark.parametrize(("shard", "schedule"), CASES)
def test_torchtitan_trains_with_sharded_state(
    needs: Needs, tmp_path: Path, shard: Shard, schedule: str
) -> None:
    needs("torchtitan", "0.3")
    plan = sharing_plan(shard, schedule, "step")
    run_ranks("train_torchtitan", plan, "torchtitan", tmp_path)
    assert_trained(plan, tmp_path, gathered=1.0 if shard == "zero2" else 0.0)


def test_torchtitan_alone_leaves_weights_gathered_after_each_backward(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the export has a file of its own for zero3. Where this fails, torch's pipelining frees them by itself."""
    needs("torchtitan", "0.3")
    plan = sharing_plan("zero3", "1f1b", "step")

    def export_without_gathers(made: Plan, target: str) -> Exported:
        exported = export_plan(made, target)
        plain = "def gathering_again(pipelining_fn):\n    return pipelining_fn\n"
        return exported._replace(files={**exported.files, "autopart_gathers.py": plain})

    monkeypatch.setattr(ranks, "export_plan", export_without_gathers)
    run_ranks("train_torchtitan", plan, "torchtitan", tmp_path)
    assert_trained(plan, tmp_path, gathered=1.0)


@pytest.mark.parametrize(("shard", "schedule"), CASES)
def test_automodel_trains_with_sharded_state(
    needs: Needs, tmp_path: Path, shard: Shard, schedule: str
) -> None:
    needs("automodel")
    plan = sharing_plan(shard, schedule, "step" if shard == "zero2" else "microbatch")
    run_ranks("train_automodel", plan, "automodel", tmp_path)
    assert_trained(plan, tmp_path, gathered=1.0 if shard == "zero2" else 0.0)
