"""Exports of plans whose ranks share samples and state: settings of FSDP2, and refusals."""

import re
import tomllib

import pytest
import yaml

from autopart.exporters.targets import TARGETS, export_plan
from tests.exporters.test_targets import files, refusal
from tests.support.exporters.language import language_plan
from tests.support.sharded_plans import sharing


def test_torchtitan_gets_shard_and_replicate_degrees() -> None:
    plan = sharing(language_plan([2, 2], replicas=2), 4, "zero2", reduce="step")
    text = files(plan, "torchtitan")["autopart_titan.py"]
    assert "parallelism.data_parallel_replicate_degree = 2\n" in text
    assert "parallelism.data_parallel_shard_degree = 4\n" in text
    assert 'parallelism.fsdp_reshard_after_forward = "never"\n' in text
    own = plan.microbatch_size // 4
    assert f"MICROBATCH_SIZE = {own}\n" in text and "torchtitan 0.3 and 16 ranks" in text
    older = tomllib.loads(files(plan, "torchtitan", "0.2.2")["autopart_titan.toml"])
    assert older["parallelism"]["data_parallel_shard_degree"] == 4
    assert older["training"]["local_batch_size"] == own * 8


@pytest.mark.parametrize(("replicas", "replicate"), [(1, None), (2, 2)])
def test_automodel_gets_shard_and_replicate_sizes(replicas: int, replicate: int | None) -> None:
    plan = sharing(language_plan([2, 2], replicas=replicas), 4, "zero2", reduce="step", tensor=2)
    recipe = yaml.safe_load(files(plan, "automodel")["autopart_automodel.yaml"])
    section = recipe["distributed"]
    assert section["dp_size"] == 4 * replicas and section["tp_size"] == 2
    assert section.get("dp_replicate_size") == replicate
    assert section["reshard_after_forward"] is False
    assert recipe["step_scheduler"]["local_batch_size"] == plan.microbatch_size // 4 * 8
    assert not any("FSDP): they take" in note for note in export_plan(plan, "automodel").notes)


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_fsdp_in_pipelines_sums_gradients_once_per_step_under_zero2(target: str) -> None:
    message = refusal(sharing(language_plan([2, 2]), 2, "zero2"), target)
    assert "scatters them once per step under zero2; the nearest plan has --shard zero2" in message
    assert message.endswith("--sync fsdp2")


def test_automodel_sums_gradients_in_each_microbatch_under_zero3() -> None:
    message = refusal(sharing(language_plan([2, 2]), 2, "zero3", reduce="step"), "automodel")
    assert "scatters them in each microbatch under zero3; the nearest plan" in message
    assert message.endswith("--sync end")


@pytest.mark.parametrize(
    "target", [name for name, target in TARGETS.items() if target.no_sharded_state]
)
def test_other_targets_refuse_shared_state_with_their_reason(target: str) -> None:
    plan = sharing(language_plan([2, 2]), 2, "zero2", reduce="step")
    message = refusal(plan, target)
    assert message.startswith("the plan has zero2 over 2 GPUs")
    assert TARGETS[target].no_sharded_state in message and "--shard none" in message


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_a_note_says_where_torch_gathers_weights_again(target: str) -> None:
    few = language_plan([1] * 6, 2, "interleaved-1f1b")
    many = language_plan([1] * 8, 2, "interleaved-1f1b")
    notes = [
        [note for note in export_plan(plan, target).notes if note.startswith("torch keeps 3")]
        for plan in (
            many,
            sharing(few, 2, "zero2", reduce="step"),
            sharing(many, 2, "zero2", reduce="step"),
        )
    ]
    assert notes[:2] == [[], []]
    (note,) = notes[2]
    said = "a rank with 4 stages gathers weights [0-9]+ times per step, and the prediction has 4 gathers"
    assert re.search(said, note)
