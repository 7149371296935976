"""Exports of context and expert degrees to torchtitan and NeMo AutoModel, and of zero3."""

import tomllib
from typing import Any

import pytest
import yaml

from autopart.errors import ExportRefused
from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from tests.exporters.test_megatron_groups import with_samples
from tests.exporters.test_targets import files, refusal
from tests.support.exporters.language import language_plan
from tests.support.sharded_plans import sharing
from tests.support.tensor_plans import in_groups


def grouped(kind: str, degree: int, *, tensor: int = 1, zero1: bool = False) -> Plan:
    """Two replicas of two ranks with so many context or expert GPUs, and 8 samples per microbatch."""
    plan = with_samples(language_plan([2, 2], replicas=2), 8, zero1=zero1)
    context, expert = (degree, 1) if kind == "context" else (1, degree)
    return in_groups(plan, tensor, sequence_parallel=tensor > 1, context=context, expert=expert)


def older(plan: Plan) -> dict[str, Any]:
    """The settings for torchtitan 0.2.2."""
    return tomllib.loads(files(plan, "torchtitan", "0.2.2")["autopart_titan.toml"])


def section(plan: Plan) -> dict[str, Any]:
    """AutoModel's recipe."""
    return yaml.safe_load(files(plan, "automodel")["autopart_automodel.yaml"])


def test_torchtitan_gets_the_context_degree_and_the_split_of_the_plan() -> None:
    plan = grouped("context", 4)
    text = files(plan, "torchtitan")["autopart_titan.py"]
    assert "parallelism.context_parallel_degree = 4\n" in text
    assert 'parallelism.context_parallel_load_balancer = "headtail"\n' in text
    assert "parallelism.data_parallel_replicate_degree = 2\n" in text
    assert 'parallelism.fsdp_reshard_after_forward = "never"\n' in text
    assert "MICROBATCH_SIZE = 8\n" in text and "expert" not in text
    settings = older(plan)["parallelism"]
    assert settings["context_parallel_rotate_method"] == "allgather"
    assert any("a multiple of 8" in note for note in export_plan(plan, "torchtitan").notes)


def test_torchtitan_gets_the_expert_degree_over_processes_with_own_samples() -> None:
    plan = grouped("expert", 4)
    text = files(plan, "torchtitan")["autopart_titan.py"]
    assert "parallelism.expert_parallel_degree = 4\n" in text
    assert "parallelism.data_parallel_shard_degree = 4\n" in text
    assert "MICROBATCH_SIZE = 2\n" in text and "a multiple of 4 experts" in text
    assert older(plan)["parallelism"]["expert_tensor_parallel_degree"] == 1
    assert older(plan)["training"]["local_batch_size"] == 2 * 8


def test_zero1_and_zero2_widen_the_shard_degree() -> None:
    text = files(grouped("expert", 2, zero1=True), "torchtitan")["autopart_titan.py"]
    assert "data_parallel_replicate_degree = 1\n" in text
    assert "data_parallel_shard_degree = 4\n" in text
    plan = with_samples(language_plan([2, 2], replicas=2), 8)
    plan = sharing(plan, 2, "zero2", reduce="step", expert=2)
    text = files(plan, "torchtitan")["autopart_titan.py"]
    assert "data_parallel_replicate_degree = 2\n" in text
    assert "data_parallel_shard_degree = 4\n" in text and "MICROBATCH_SIZE = 4\n" in text


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
@pytest.mark.parametrize(
    ("kind", "zero1", "told"),
    [
        ("context", False, "all weights over 2 GPUs, and the plan keeps it whole"),
        ("context", True, "all weights over 4 GPUs, and the plan shares it over 2 GPUs"),
        ("expert", False, "weights without experts over 2 GPUs, and the plan keeps it whole"),
    ],
)
def test_a_note_says_that_fsdp_shares_state_over_more_gpus(
    target: str, kind: str, zero1: bool, told: str
) -> None:
    notes = export_plan(grouped(kind, 2, zero1=zero1), target).notes
    (note,) = (note for note in notes if "shares the state" in note)
    assert told in note and note.endswith("memory is smaller than predicted")


def test_automodel_gets_context_and_expert_sizes() -> None:
    plan = grouped("context", 2)
    found = section(plan)["distributed"]
    assert (found["cp_size"], found["dp_size"]) == (2, 2) and "ep_size" not in found
    assert found["reshard_after_forward"] is False and found["defer_fsdp_grad_sync"] is True
    found = section(grouped("expert", 4))
    assert found["distributed"]["ep_size"] == 4 and found["distributed"]["dp_size"] == 8
    assert found["distributed"]["pipeline"]["pp_microbatch_size"] == 2
    assert found["step_scheduler"]["local_batch_size"] == 2 * 8
    notes = export_plan(grouped("expert", 4), "automodel").notes
    assert any("model.backend.dispatcher to deepep" in note for note in notes)


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_expert_groups_around_tensor_groups_are_refused(target: str) -> None:
    plan = with_samples(in_groups(language_plan([2, 2]), 2, expert=2), 8)
    message = refusal(plan, target)
    assert message.startswith("the plan has tensor degree 2 and expert degree 2, and the expert")
    assert "the nearest plan has --tensor 1; --to megatron takes this plan" in message


def test_older_torchtitan_shards_experts_in_tensor_groups_too() -> None:
    settings = older(grouped("expert", 2, tensor=2))["parallelism"]
    assert settings["expert_parallel_degree"] == 2
    assert settings["expert_tensor_parallel_degree"] == 2


def test_torchtitan_gets_a_file_for_weights_that_are_gathered_again() -> None:
    plan = sharing(language_plan([2, 2], replicas=2), 2, "zero3", reduce="step")
    found = files(plan, "torchtitan")
    text = found["autopart_titan.py"]
    assert 'parallelism.fsdp_reshard_after_forward = "always"\n' in text
    assert "pipelining_fn=gathering_again(spec.pipelining_fn)" in text
    assert "set_reshard_after_backward" in found["autopart_gathers.py"]
    message = refusal(plan, "torchtitan", "0.2.2")
    assert "leaves them gathered after each backward; --target-version 0.3.0 takes" in message
    other = sharing(language_plan([2, 2]), 2, "zero2", reduce="step")
    assert "autopart_gathers.py" not in files(other, "torchtitan")


def test_primus_gets_megatrons_degrees_as_yaml() -> None:
    fields = yaml.safe_load(files(grouped("context", 4), "primus")["autopart_primus.yaml"])
    assert (fields["context_parallel_size"], fields["cp_comm_type"]) == (4, "all_gather")
    plan = grouped("expert", 4)
    fields = yaml.safe_load(files(plan, "primus")["autopart_primus.yaml"])
    assert fields["expert_model_parallel_size"] == 4 and fields["moe_grouped_gemm"] is True
    assert fields["micro_batch_size"] == 2 and fields["global_batch_size"] == 8 * 16
    split = with_samples(in_groups(language_plan([2, 2]), 2, expert=2), 8)
    assert "AMD Primus trains a mixture of experts in tensor groups only" in refusal(
        split, "primus"
    )


def test_automodel_syncs_in_each_microbatch_under_zero3() -> None:
    plan = sharing(language_plan([2, 2], replicas=2), 2, "zero3")
    found = section(plan)["distributed"]
    assert found["reshard_after_forward"] is True and found["defer_fsdp_grad_sync"] is False
    assert found["dp_replicate_size"] == 2
    notes = export_plan(plan, "automodel").notes
    assert any("gradients of replicas in each microbatch too" in note for note in notes)


@pytest.mark.parametrize(
    ("target", "version"), [("torchtitan", None), ("torchtitan", "0.2.2"), ("automodel", None)]
)
def test_context_groups_inside_expert_groups_are_refused(target: str, version: str | None) -> None:
    plan = with_samples(in_groups(language_plan([2, 2]), 1, context=2, expert=2), 8)
    with pytest.raises(
        ExportRefused, match=r"context groups would lie inside them; .* --context 1"
    ):
        export_plan(plan, target, version=version)
