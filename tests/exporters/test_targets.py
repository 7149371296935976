"""Each framework's files, word by word, and the plans that it refuses."""

import ast
import csv
import json
import tomllib
from typing import Any

import msgspec
import pytest
import yaml

from autopart.errors import ExportRefused, UsageError
from autopart.exporters.targets import TARGETS, export_plan
from autopart.exporters.torchtitan import SPMD_NOTE
from autopart.records.plan import Plan, schedule_of
from autopart.records.prediction import Sync
from autopart.schedules.actions import parse_order
from tests.support.exporters.language import language_plan, recomputing
from tests.support.exporters.plans import make_plan

WITH_MODELS = [name for name, target in TARGETS.items() if target.of_units]
TRAINING = ["torchtitan", "megatron", "deepspeed", "automodel", "primus"]


def files(plan: Plan, target: str, version: str | None = None) -> dict[str, str]:
    return dict(export_plan(plan, target, version=version).files)


def refusal(plan: Plan, target: str, version: str | None = None) -> str:
    with pytest.raises(ExportRefused) as caught:
        export_plan(plan, target, version=version)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def constants(text: str) -> dict[str, Any]:
    """The literals that a module binds to names."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def changed(plan: Plan, **changes: Any) -> Plan:
    return msgspec.structs.replace(plan, **changes)


def test_exports_of_a_plan_for_the_period_say_that_steps_may_wait_for_all_ranks() -> None:
    plan = language_plan([2, 1, 3, 0])
    told = export_plan(changed(plan, objective="period"), "torchtitan").notes
    assert [note for note in told if "may wait for all ranks in each step" in note]
    assert told[:-1] == export_plan(plan, "torchtitan").notes


def test_torchtitan_names_every_unit_once() -> None:
    plan = recomputing(language_plan([2, 1, 3, 0]), 0, 4)
    made = constants(files(plan, "torchtitan")["autopart_titan.py"])
    assert made["STAGES"] == [
        ["tok_embeddings", "layers.0", "layers.1"],
        ["layers.2"],
        ["layers.3", "layers.4", "layers.5"],
        ["norm", "lm_head"],
    ]
    assert made["RECOMPUTED"] == ["layers.0", "layers.4"]
    assert (made["NUM_LAYERS"], made["SCHEDULE"]) == (6, "1F1B")
    assert made["SCHEDULE_FILE"] is None


def test_torchtitan_0_2_gets_toml() -> None:
    plan = recomputing(language_plan([1, 1, 1, 1], 2, "interleaved-1f1b"), 0, 1, 2, 3)
    told = tomllib.loads(files(plan, "torchtitan", "0.2.2")["autopart_titan.toml"])
    assert told["parallelism"]["module_fqns_per_model_part"][-1] == ["layers.3", "norm", "output"]
    assert told["parallelism"]["pipeline_parallel_schedule"] == "Interleaved1F1B"
    assert told["training"]["local_batch_size"] == 16
    assert told["activation_checkpoint"]["mode"] == "full"
    assert "0.2.2 recomputes all, none, or every n-th" in refusal(
        recomputing(plan, 1), "torchtitan", "0.2.2"
    )


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_orders_without_a_torch_name_go_into_a_file_for_one_replica(target: str) -> None:
    plan = changed(language_plan([1, 1, 1, 1], 2, "looped-bfs", replicas=2), schedule="custom")
    made = files(plan, target)
    rows = list(csv.reader(made["autopart_schedule.csv"].splitlines()))
    orders = schedule_of(plan)
    for place, row in enumerate(rows):
        wanted = [a._replace(microbatch=a.microbatch // 2) for a in orders[2 * place]]
        assert list(parse_order(" ".join(row))) == wanted
    assert any("PipelineScheduleMulti" in text for text in made.values())


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_a_v_has_the_torch_name_that_places_it(target: str) -> None:
    plan = language_plan([1, 1, 1, 1], 2, "hanayo", num_microbatches=2)
    made = files(plan, target)
    assert len(made) == 2 and any("ZBVZeroBubble" in text for text in made.values())


def test_1f1b_with_few_microbatches_goes_into_a_file_because_torch_refuses_the_name() -> None:
    made = files(language_plan([1, 1, 1, 1], num_microbatches=2), "torchtitan")
    assert set(made) == {"autopart_titan.py", "autopart_schedule.csv"}
    assert constants(made["autopart_titan.py"])["SCHEDULE"] == "PipelineScheduleMulti"


def test_megatron_gets_the_layout_as_a_string_and_as_a_list() -> None:
    made = files(language_plan([3, 1, 2, 0], 2, "interleaved-1f1b"), "megatron")
    assert "--pipeline-model-parallel-layout 'Et*3|t|t*2|L'\n" in made["autopart_megatron.sh"]
    fields = yaml.safe_load(made["autopart_megatron.yaml"])
    assert fields["pipeline_model_parallel_layout"][0] == ["embedding", *["decoder"] * 3]
    assert fields["pipeline_model_parallel_layout"][3] == ["loss"]
    assert fields["virtual_pipeline_model_parallel_size"] == 2


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([2, 2, 2], ""),
        ([1, 3, 3, 2], "--decoder-first-pipeline-num-layers 1\n    --decoder-last-pipeline-num-layers 2"),
        ([2, 5], "--decoder-first-pipeline-num-layers 2"),
        ([0, 1, 1, 0],
         "--account-for-embedding-in-pipeline-split\n    --account-for-loss-in-pipeline-split"),
    ],
)  # fmt: skip
def test_megatron_without_layouts_gets_the_first_and_the_last_stage(
    counts: list[int], told: str
) -> None:
    made = files(language_plan(counts), "megatron", "0.12")
    assert set(made) == {"autopart_megatron.sh"}
    text = made["autopart_megatron.sh"]
    assert told in text and "layout" not in text
    assert ("decoder" in text, "account" in text) == ("decoder" in told, "account" in told)


def test_megatron_recomputes_the_first_layers_on_each_stage() -> None:
    plan = language_plan([3, 1, 2])
    made = files(recomputing(plan, 0, 1, 3, 4, 5), "megatron")
    assert "--recompute-method block\n    --recompute-num-layers 2" in made["autopart_megatron.sh"]
    made = files(recomputing(plan, 0, 1, 2, 4), "megatron")
    assert constants(made["autopart_recompute.py"])["RECOMPUTED"] == ((3,), (0,), (1,))
    message = refusal(recomputing(plan, 1), "megatron")
    assert "recomputes layers 1" in message and "the nearest plan recomputes 0" in message


@pytest.mark.parametrize(
    ("counts", "words"), [([2, 1, 3, 2], "need a layout"), ([0, 3, 2], "gives it one layer")]
)
def test_megatron_without_layouts_refuses_other_stage_sizes(counts: list[int], words: str) -> None:
    assert words in refusal(language_plan(counts), "megatron", "0.12")


def test_megatron_without_layouts_refuses_several_stages_per_rank_and_uneven_recompute() -> None:
    plan = language_plan([1, 1, 1, 1], 2, "interleaved-1f1b")
    assert "the nearest plan has one stage per rank" in refusal(plan, "megatron", "0.12")
    plan = recomputing(language_plan([2, 2]), 0)
    assert "supports from 0.13 on" in refusal(plan, "megatron", "0.12")


def test_deepspeed_gets_boundaries_and_no_clipping() -> None:
    made = files(recomputing(language_plan([2, 1], replicas=2), 1), "deepspeed")
    module = constants(made["autopart_deepspeed.py"])
    assert module["PARTS"] == (0, 3, 6) and module["RECOMPUTED"] == [2]
    config = json.loads(made["autopart_deepspeed.json"])
    assert config["gradient_clipping"] == 0.0
    micro, steps = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == micro * steps * 2 == 32
    assert config["pipeline"] == {"activation_checkpoint_interval": 1, "use_reentrant": False}


def test_deepspeed_takes_layers_with_any_name() -> None:
    layers = [["0", "1"], ["2", "pool", "pool@1", "loss"]]
    module = files(make_plan(layers, [(0,), (1,)], 4), "deepspeed")["autopart_deepspeed.py"]
    assert constants(module)["UNITS"] == [["0", "1"], ["2", "pool"]]
    assert constants(module)["PARTS"] == (0, 2, 4)


def test_automodel_keeps_the_rotary_embedding_on_every_stage() -> None:
    told = yaml.safe_load(files(language_plan([1, 2]), "automodel")["autopart_automodel.yaml"])
    parts = told["distributed"]["pipeline"]["module_fqns_per_model_part"]
    assert parts[0] == ["model.embed_tokens", "model.layers.0", "model.rotary_emb"]
    assert all("model.rotary_emb" in part for part in parts)


@pytest.mark.parametrize("schedule", ["zb-h1", "interleaved-zb", "zbv", "dualpipev", "v-half"])
@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_split_backwards_are_refused_because_fsdp_loses_gradients(
    target: str, schedule: str
) -> None:
    counts = [1, 1] if schedule == "zb-h1" else [1, 1, 1, 1]
    message = refusal(language_plan(counts, 2, schedule), target)
    assert "loses weight gradients" in message and "--schedule 1f1b" in message


def test_automodel_needs_a_microbatch_per_rank() -> None:
    few = language_plan([1, 1, 1], schedule="gpipe", num_microbatches=2, replicas=2)
    assert "the nearest plan has 6 microbatches" in refusal(few, "automodel")


def test_automodel_notes_sharded_parameters_and_the_start_folder() -> None:
    plan = changed(language_plan([1, 1], schedule="gpipe", replicas=2), schedule="custom")
    notes = export_plan(plan, "automodel").notes
    assert "over its replicas (FSDP)" in notes[0] and "in the folder of" in notes[1]
    assert export_plan(plan, "torchtitan", version="0.2.2").notes == (notes[1],)


def test_automodel_recomputes_all_or_none() -> None:
    plan = language_plan([1, 2])
    assert "recomputes all or none" in refusal(recomputing(plan, 0), "automodel")
    text = files(recomputing(plan, 0, 1, 2), "automodel")["autopart_automodel.yaml"]
    assert yaml.safe_load(text)["distributed"]["activation_checkpointing"] == "full"


def test_primus_recomputes_any_layers_and_runs_a_v() -> None:
    plan = recomputing(language_plan([1, 2, 1, 1], 2, "zbv"), 0, 2, 4)
    told = yaml.safe_load(files(plan, "primus")["autopart_primus.yaml"])
    assert told["recompute_layer_ids"] == "0,2,4"
    assert told["pipeline_model_parallel_layout"] == "Et|t*2|t|tL"
    assert (told["patch_primus_pipeline"], told["pp_algorithm"]) == (True, "zbv-formatted")


@pytest.mark.parametrize(("schedule", "per_rank"), [("1f1b", 1), ("interleaved-1f1b", 2)])
def test_primus_runs_megatrons_schedules_without_its_own_pipeline(
    schedule: str, per_rank: int
) -> None:
    plan = language_plan([1] * 2 * per_rank, 2, schedule)
    told = yaml.safe_load(files(plan, "primus")["autopart_primus.yaml"])
    assert told["patch_primus_pipeline"] is False and "pp_algorithm" not in told


@pytest.mark.parametrize("schedule", ["gpipe", "zb-h2", "v-half", "v-min", "dualpipev"])
def test_primus_refuses_schedules_with_other_orders(schedule: str) -> None:
    counts = [1, 1] if schedule in ("gpipe", "zb-h2") else [1, 1, 1, 1]
    message = refusal(language_plan(counts, 2, schedule), "primus")
    assert f"this plan runs {schedule}; the nearest plan has --schedule" in message


@pytest.mark.parametrize(
    ("schedule", "counts", "least"), [("zb-h1", [1] * 4, 4), ("zbv", [1] * 6, 5)]
)
def test_primus_refuses_few_microbatches_because_its_table_is_wrong(
    schedule: str, counts: list[int], least: int
) -> None:
    num_ranks = len(counts) // (2 if schedule == "zbv" else 1)
    few = language_plan(counts, num_ranks, schedule, least - 1, replicas=2)
    assert f"the nearest plan has {2 * least} microbatches" in refusal(few, "primus")
    assert files(language_plan(counts, num_ranks, schedule, least), "primus")


def test_serving_gets_the_cuts() -> None:
    plan = language_plan([3, 2])
    assert files(plan, "vllm")["autopart_vllm.sh"].endswith("VLLM_PP_LAYER_PARTITION=3,2\n")
    devices = json.loads(files(plan, "device-map")["autopart_device_map.json"])
    assert devices["transformer.h.2"] == 0 and devices["lm_head"] == 1 and "loss" not in devices
    again = make_plan([["a", "act"], ["act@1", "b"]], [(0,), (1,)], 4)
    assert "--same-stage act,act@1" in refusal(again, "device-map")


# Plans that a framework refuses


@pytest.mark.parametrize("target", TRAINING)
def test_a_pipeline_with_one_rank_is_refused(target: str) -> None:
    message = refusal(language_plan([4], replicas=2), target)
    assert "ignores all pipeline settings; train on 2 replicas without a pipeline" in message


@pytest.mark.parametrize("target", WITH_MODELS)
def test_different_numbers_of_replicas_are_refused(target: str) -> None:
    plan = make_plan([["wte", "h.0"], ["h.1", "ln_f", "lm_head"]], [(0, 1), (2,)], 4)
    assert "the nearest plan has 1 on every stage" in refusal(plan, target)


@pytest.mark.parametrize("target", WITH_MODELS)
def test_idle_ranks_and_uneven_shares_are_refused(target: str) -> None:
    plan = language_plan([1, 1])
    assert "solve for 2 GPUs" in refusal(changed(plan, orders=(*plan.orders, "")), target)
    layers = [["wte", "h.0"], ["h.1", "ln_f", "lm_head"]]
    odd = make_plan(layers, [(0, 1), (2, 3)], 5)
    assert "have 4 or 6 microbatches" in refusal(odd, target)


@pytest.mark.parametrize("target", WITH_MODELS)
def test_offloading_is_refused(target: str) -> None:
    plan = language_plan([1, 1])
    stage = changed(plan.stages[1], offload=("transformer.h.1",))
    message = refusal(changed(plan, stages=(plan.stages[0], stage)), target)
    assert "stage 1 offloads layer 'transformer.h.1'" in message
    stage = changed(plan.stages[0], optimizer_on_host=True)
    message = refusal(changed(plan, stages=(stage, plan.stages[1])), target)
    assert "stage 0 keeps its optimizer state on the host" in message


def test_zero1_is_exported_or_refused() -> None:
    plan = language_plan([1, 1], replicas=2)
    plan = changed(plan, training=changed(plan.training, zero1=True))
    config = json.loads(files(plan, "deepspeed")["autopart_deepspeed.json"])
    assert config["zero_optimization"] == {"stage": 1}
    assert "--use-distributed-optimizer\n" in files(plan, "megatron")["autopart_megatron.sh"]
    told = yaml.safe_load(files(plan, "primus")["autopart_primus.yaml"])
    assert told["use_distributed_optimizer"] is True
    assert "solved without --zero1" in refusal(plan, "torch")
    lines = (
        "data_parallel_replicate_degree = 1\n",
        "data_parallel_shard_degree = 2\n",
        'fsdp_reshard_after_forward = "never"\n',
    )
    assert "".join(lines) in files(plan, "torchtitan", "0.2.2")["autopart_titan.toml"]
    indented = "".join(f"    parallelism.{line}" for line in lines)
    assert indented in files(plan, "torchtitan")["autopart_titan.py"]


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_losses_out_of_order_are_refused(target: str) -> None:
    plan = language_plan([1, 1], schedule="gpipe", num_microbatches=3)
    orders = tuple(order.replace("1F0 1F1", "1F1 1F0") for order in plan.orders)
    message = refusal(changed(plan, schedule="custom", orders=orders), target)
    assert "the last stage runs microbatch 1 as number 0" in message


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_tied_parameters_on_several_stages_are_refused(target: str) -> None:
    plan = language_plan([1, 1])
    sync = Sync(what="transformer.wte.weight", ranks=(0, 1), time=0.0)
    plan = changed(plan, prediction=changed(plan.prediction, syncs=(sync,)))
    assert "'transformer.wte.weight' is tied over several stages" in refusal(plan, target)


@pytest.mark.parametrize("target", ["torchtitan", "megatron", "automodel", "primus"])
def test_only_decoder_layers_are_recomputed(target: str) -> None:
    plan = language_plan([1, 1])
    stage = changed(plan.stages[1], recompute=("lm_head",))
    assert "recomputes 'head'" in refusal(changed(plan, stages=(plan.stages[0], stage)), target)


def recomputing_all(plan: Plan) -> Plan:
    """The plan as after `--recompute always`: every layer is recomputed, the loss too."""
    stages = tuple(changed(stage, recompute=stage.layers) for stage in plan.stages)
    return changed(plan, stages=stages)


@pytest.mark.parametrize("target", [*TRAINING, "torch"])
def test_a_recomputed_loss_is_refused_with_the_option_that_keeps_it(target: str) -> None:
    plan = recomputing_all(language_plan([1, 1]))
    assert "recomputes 'loss'" in (said := refusal(plan, target)) and "--keep-layer loss" in said


def test_serving_ignores_a_recomputed_loss() -> None:
    plan = recomputing_all(language_plan([1, 1]))
    for target in ("vllm", "device-map"):
        assert files(plan, target) == files(language_plan([1, 1]), target)


def test_all_layers_without_the_loss_are_recomputed_in_deepspeed() -> None:
    plan = recomputing_all(language_plan([1, 1]))
    last = changed(plan.stages[1], recompute=plan.stages[1].layers[:-1])
    plan = changed(plan, stages=(plan.stages[0], last))
    made = constants(files(plan, "deepspeed")["autopart_deepspeed.py"])
    assert made["RECOMPUTED"] == list(range(5))


@pytest.mark.parametrize("target", ["megatron", "primus", "vllm"])
def test_norm_on_the_first_stage_and_a_missing_embedding_are_refused(target: str) -> None:
    plan = make_plan([["wte", "h.0", "ln_f"], ["lm_head"]], [(0,), (1,)], 4)
    assert "'norm' is on stage 0" in refusal(plan, target)
    plan = make_plan([["h.0"], ["ln_f", "lm_head"]], [(0,), (1,)], 4)
    assert "--map 'NAME=embedding'" in refusal(plan, target)


@pytest.mark.parametrize("target", ["megatron", "deepspeed"])
def test_schedules_unknown_to_the_framework_are_refused(target: str) -> None:
    assert "--schedule 1f1b" in refusal(language_plan([1, 1], schedule="gpipe"), target)
    plan = language_plan([1, 1, 1, 1], 2, "zbv")
    assert "nearest plan" in refusal(plan, target)


def test_own_orders_are_refused_where_the_framework_reads_no_order_file() -> None:
    plan = language_plan([1, 1])
    other = changed(plan, orders=language_plan([1, 1], schedule="gpipe").orders)
    for target in ("megatron", "deepspeed", "primus"):
        assert "orders of its own" in refusal(other, target)


def test_megatron_takes_interleaved_microbatches_in_groups() -> None:
    plan = language_plan([1, 1, 1, 1, 1, 1], 3, "interleaved-1f1b", num_microbatches=5)
    assert "groups of 3" in refusal(plan, "megatron")
    assert "have 3 or 6 microbatches" in refusal(plan, "megatron")


def test_stages_in_neither_a_loop_nor_a_v_are_refused() -> None:
    plan = make_plan([["wte", "h.0"], ["h.1", "lm_head"]], [(0,), (1,)], 2)
    layers = [["wte"], ["h.0"], ["h.1", "lm_head"]]
    stages = tuple(
        changed(plan.stages[0], layers=tuple(names), ranks=(rank,))
        for names, rank in zip(layers, (0, 0, 1), strict=True)
    )
    for target in ("torchtitan", "automodel", "megatron"):
        message = refusal(changed(plan, stages=stages), target)
        assert "these stages are on ranks 0, 0, 1" in message


def test_a_note_lists_ranks_in_a_different_order() -> None:
    plan = make_plan([["wte", "h.0"], ["h.1", "lm_head"]], [(0, 2), (1, 3)], 4)
    backend, ranks = export_plan(plan, "torchtitan").notes[::-1]
    assert backend == SPMD_NOTE and "must run on the plan's ranks 0, 2, 1, 3" in ranks


def test_an_unknown_version_is_refused_with_the_known_versions() -> None:
    with pytest.raises(UsageError, match=r"torchtitan 9; known versions: 0.3.0, 0.2.2"):
        export_plan(language_plan([1, 1]), "torchtitan", version="9")


@pytest.mark.parametrize("schedule", ["chimera", "gems"])
@pytest.mark.parametrize("target", [*TRAINING, "torch"])
def test_two_pipelines_over_the_same_ranks_are_refused(target: str, schedule: str) -> None:
    """By the schedules that the framework runs, or by the rank that would need two schedules."""
    said = refusal(language_plan([2, 1, 3, 0], schedule=schedule), target)
    assert f"this plan runs {schedule}" in said or "rank 0 runs stages of replicas 0 and 1" in said
    assert "the nearest plan" in said
