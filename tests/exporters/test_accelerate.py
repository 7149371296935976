"""The export to Hugging Face accelerate: FSDP2 without a pipeline."""

from typing import Any

import msgspec
import pytest
import yaml

from autopart.errors import UsageError
from autopart.exporters.accelerate import FILE, layer_classes
from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from autopart.records.rank_group import Reduce, Shard
from tests.exporters.test_targets import refusal
from tests.support.exporters.language import language_plan, recomputing
from tests.support.hostile_names import HOSTILE
from tests.support.problems import chain_graph, layer, profile
from tests.support.sharded_plans import sharing


def whole_model(
    shard: Shard, reduce: Reduce = "step", *, replicas: int = 1, **degrees: int
) -> Plan:
    """One stage of three blocks on ranks of four processes that share state."""
    plan = language_plan([3], 1, "1f1b", 4, replicas)
    return sharing(plan, 4, shard, reduce=reduce, **degrees)


def settings(plan: Plan, *classes: str) -> dict[str, Any]:
    return yaml.safe_load(export_plan(plan, "accelerate", classes=classes).files[FILE])


@pytest.mark.parametrize(("shard", "again"), [("zero2", False), ("zero3", True)])
def test_the_kind_says_whether_weights_are_gathered_again(shard: Shard, again: bool) -> None:
    found = settings(whole_model(shard, replicas=2), "GPT2Block")
    fsdp, degrees = found["fsdp_config"], found["parallelism_config"]
    assert found["distributed_type"] == "FSDP" and found["num_processes"] == 8
    assert fsdp["fsdp_version"] == 2 and fsdp["fsdp_reshard_after_forward"] is again
    assert fsdp["fsdp_transformer_layer_cls_to_wrap"] == "GPT2Block"
    assert degrees["parallelism_config_dp_replicate_size"] == 2
    assert degrees["parallelism_config_dp_shard_size"] == 4


def test_degrees_inside_a_group_are_written_too() -> None:
    degrees = settings(whole_model("zero3", tensor=2, context=2))["parallelism_config"]
    assert degrees["parallelism_config_tp_size"] == degrees["parallelism_config_cp_size"] == 2
    assert degrees["parallelism_config_cp_comm_strategy"] == "allgather"
    plan = whole_model("zero3", context=2)
    ring = msgspec.structs.replace(plan.group, exchange="ring")  # pyright: ignore
    degrees = settings(msgspec.structs.replace(plan, group=ring))["parallelism_config"]
    assert degrees["parallelism_config_cp_comm_strategy"] == "alltoall"
    notes = " ".join(export_plan(whole_model("zero3", tensor=2, context=2), "accelerate").notes)
    assert "shares the state of all weights over 8 GPUs, and the plan shares it over 4" in notes
    assert "tp_plan='auto'" in notes and "a multiple of 4" in notes


def test_mixed_precision_has_master_copies() -> None:
    plan = whole_model("zero3")
    assert settings(plan)["mixed_precision"] == "no"
    training = msgspec.structs.replace(plan.training, precision="bfloat16-mixed")
    assert settings(msgspec.structs.replace(plan, training=training))["mixed_precision"] == "bf16"


def test_notes_say_what_the_training_script_sets() -> None:
    each = export_plan(whole_model("zero3", "microbatch"), "accelerate").notes
    assert any("size to 2 and gradient_accumulation_steps to 4" in note for note in each)
    assert any("need sync_each_batch" in note for note in each)
    assert any("_no_split_modules" in note for note in each)
    once = export_plan(whole_model("zero2"), "accelerate", classes=("GPT2Block",)).notes
    assert any("gathers weights in each of 4 microbatches" in note for note in once)
    assert not any("sync_each_batch" in note or "_no_split" in note for note in once)


def test_all_layers_or_none_are_recomputed() -> None:
    plan = whole_model("zero3")
    assert settings(plan)["fsdp_config"]["fsdp_activation_checkpointing"] is False
    found = settings(recomputing(plan, 0, 1, 2))
    assert found["fsdp_config"]["fsdp_activation_checkpointing"] is True
    assert "recomputes all or none" in refusal(recomputing(plan, 1), "accelerate")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_leaves_the_file_readable(name: str) -> None:
    plan = whole_model("zero3")
    origin = msgspec.structs.replace(plan.origin, model=name)
    assert settings(msgspec.structs.replace(plan, origin=origin)) == settings(plan)
    layers = [
        msgspec.structs.replace(layer(own, param_bytes=8), kind=name)
        for own in plan.stages[0].layers
    ]
    assert layer_classes(plan, profile(chain_graph(*layers))) == ()


def test_refusals_name_the_nearest_plan() -> None:
    staged = sharing(language_plan([1, 2]), 2, "zero3", reduce="step")
    message = refusal(staged, "accelerate")
    assert message.startswith("the plan has 2 stages, and") and "has --stages 1; --to" in message
    plain = language_plan([3], 1, "1f1b", 4, 2)
    assert "the nearest plans have --shard zero3 and" in refusal(plain, "accelerate")
    split = whole_model("zero3", tensor=2)
    group = msgspec.structs.replace(split.group, sequence_parallel=True)  # pyright: ignore
    message = refusal(msgspec.structs.replace(split, group=group), "accelerate")
    assert message.endswith("the nearest plan has --sequence-parallel off")
    assert "has no expert degree" in refusal(whole_model("zero3", expert=2), "accelerate")


def test_repeated_layers_with_weights_are_wrapped() -> None:
    plan = whole_model("zero3")
    kinds = {"transformer.h.": "GPT2Block", "transformer.w": "Embedding"}
    layers = [
        msgspec.structs.replace(
            layer(name, param_bytes=8 * (name != "loss")),
            kind=next((kind for start, kind in kinds.items() if name.startswith(start)), name),
        )
        for name in plan.stages[0].layers
    ]
    assert layer_classes(plan, profile(chain_graph(*layers))) == ("Embedding", "GPT2Block")
    with pytest.raises(UsageError, match="has other layers than the plan"):
        layer_classes(plan, profile(chain_graph(layer("other"))))
