"""Hugging Face accelerate reads its exports back, and wraps a small model as they say."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from autopart.exporters.readback.accelerate import settings
from autopart.exporters.readback.check import check_export
from autopart.exporters.readback.process_meshes import pretended_processes
from autopart.exporters.readback.rebuilt import framework_module
from autopart.exporters.targets import export_plan
from autopart.records.check import Check
from autopart.records.rank_group import Shard
from tests.exporters.readback.conftest import Needs
from tests.exporters.readback.test_check import swapped
from tests.exporters.test_accelerate import whole_model
from tests.support.exporters.language import recomputing

pytestmark = [
    pytest.mark.slow,  # the import takes seconds
    pytest.mark.filterwarnings("ignore"),  # the framework warns on import
]


def test_accelerate_reads_degrees_groups_and_kinds_back(
    needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("accelerate")
    plan = recomputing(whole_model("zero3", replicas=2, context=2), 0, 1, 2)
    checks = {check.name: check for check in check_export(plan, "accelerate", (), ("GPT2Block",))}
    assert all(check.passed for check in checks.values()), checks
    assert checks["layers"].detail == "wraps GPT2Block, as planned"
    assert checks["recompute"].detail == "all wrapped layers, as planned"
    assert checks["context groups"] == Check(
        "context groups", True, "8 groups of 2 GPUs, as planned"
    )
    assert "2 replicas of 4 processes that share state" in checks["sharded state"].detail
    other = whole_model("zero2", replicas=2, context=2)
    failed = swapped(monkeypatch, plan, other, "accelerate")
    assert [check.name for check in failed] == ["recompute", "sharded state"]


@pytest.mark.parametrize(("shard", "again"), [("zero2", False), ("zero3", True)])
def test_accelerate_wraps_the_layers_of_a_model(
    needs: Needs, tmp_path: Path, shard: Shard, again: bool
) -> None:
    needs("accelerate")
    transformers = pytest.importorskip("transformers")
    torch = framework_module("torch")
    plan = whole_model(shard, replicas=2)
    for name, text in export_plan(plan, "accelerate", classes=("GPT2Block",)).files.items():
        (tmp_path / name).write_text(text)
    plugin, degrees = settings(tmp_path)
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 8}
    words = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **words))
    with pretended_processes(8):
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            torch_device_mesh=degrees.build_device_mesh("cpu"),
            parallelism_config=degrees,
            mixed_precision="no",
            is_main_process=True,
            device=torch.device("cpu"),
        )
        made = framework_module("accelerate.utils.fsdp_utils").fsdp2_prepare_model(
            accelerator, model
        )
        for block in made.transformer.h:
            (group,) = block._get_fsdp_state()._fsdp_param_groups
            assert group._reshard_after_forward is again
            assert group.mesh_info.shard_mesh_size == 4
            assert group.mesh_info.replicate_mesh_size == 2
