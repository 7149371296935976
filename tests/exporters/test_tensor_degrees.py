"""Exports of plans whose ranks are tensor groups: each framework's words, and refusals."""

import tomllib

import msgspec
import pytest
import yaml

from autopart.exporters.targets import TARGETS, export_plan
from autopart.records.plan import Plan
from tests.exporters.test_targets import files, refusal
from tests.support.exporters.language import language_plan
from tests.support.tensor_plans import in_groups


def test_megatron_gets_the_tensor_degree() -> None:
    plan = language_plan([2, 2], replicas=2)
    written = files(in_groups(plan, 4, sequence_parallel=True), "megatron")
    arguments = written["autopart_megatron.sh"]
    assert "--tensor-model-parallel-size 4\n" in arguments and "--sequence-parallel\n" in arguments
    fields = yaml.safe_load(written["autopart_megatron.yaml"])
    assert (fields["tensor_model_parallel_size"], fields["sequence_parallel"]) == (4, True)
    without = files(in_groups(plan, 2), "megatron")
    assert "--sequence-parallel" not in without["autopart_megatron.sh"]
    assert yaml.safe_load(without["autopart_megatron.yaml"])["sequence_parallel"] is False
    assert "tensor" not in "".join(files(plan, "megatron").values())


def test_torchtitan_gets_the_tensor_degree() -> None:
    plan = in_groups(language_plan([2, 2], replicas=2), 2)
    text = files(plan, "torchtitan")["autopart_titan.py"]
    assert "parallelism.tensor_parallel_degree = 2\n" in text
    assert "parallelism.enable_sequence_parallel = False\n" in text
    assert "torchtitan 0.3 and 8 ranks" in text and "--nproc-per-node 8" in text
    assert "sequence parallelism only" in refusal(plan, "torchtitan", "0.2.2")
    split = in_groups(language_plan([2, 2]), 2, sequence_parallel=True)
    toml = tomllib.loads(files(split, "torchtitan", "0.2.2")["autopart_titan.toml"])
    assert toml["parallelism"]["tensor_parallel_degree"] == 2


def test_a_note_lists_the_gpus_of_tensor_groups_in_the_frameworks_order() -> None:
    ranks = [[0, 2], [1, 3]]  # Frameworks number the first stage's replicas first.
    plan = language_plan([2, 2], replicas=2)
    stages = tuple(
        msgspec.structs.replace(stage, ranks=tuple(own))
        for stage, own in zip(plan.stages, ranks, strict=True)
    )
    orders = tuple(plan.orders[at] for at in (0, 2, 1, 3))
    notes = export_plan(
        in_groups(msgspec.structs.replace(plan, stages=stages, orders=orders), 2), "megatron"
    ).notes
    assert "the plan's GPUs 0, 1, 4, 5, 2, 3, 6, 7" in notes[0]


def test_automodel_gets_the_tensor_degree_without_sequence_parallelism() -> None:
    plan = in_groups(language_plan([2, 2], replicas=2), 4)
    section = yaml.safe_load(files(plan, "automodel")["autopart_automodel.yaml"])["distributed"]
    sizes = [section[name] for name in ("dp_size", "pp_size", "tp_size", "sequence_parallel")]
    assert sizes == [2, 2, 4, False]
    assert any("the whole logits" in note for note in export_plan(plan, "automodel").notes)
    split = in_groups(language_plan([2, 2]), 2, sequence_parallel=True)
    assert "the nearest plan has --sequence-parallel off" in refusal(split, "automodel")
    assert "tp_size" not in files(language_plan([2, 2]), "automodel")["autopart_automodel.yaml"]


def test_primus_and_vllm_get_the_tensor_degree() -> None:
    plan = in_groups(language_plan([2, 2]), 4, sequence_parallel=True)
    fields = yaml.safe_load(files(plan, "primus")["autopart_primus.yaml"])
    assert (fields["tensor_model_parallel_size"], fields["sequence_parallel"]) == (4, True)
    line = "--pipeline-parallel-size 2 --tensor-parallel-size 4\n"
    assert line in files(plan, "vllm")["autopart_vllm.sh"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("torch", "the exported modules shard no weights; --to megatron and --to"),
        (
            "deepspeed",
            "DeepSpeed's AutoTP knows no stages: it sums gradients over GPUs of different",
        ),
        ("device-map", "Hugging Face takes either a device_map or a tp_size"),
    ],
)
def test_other_frameworks_refuse_a_tensor_degree_with_the_reason(target: str, reason: str) -> None:
    message = refusal(in_groups(language_plan([2, 2]), 2), target)
    assert message.startswith(f"the plan has tensor degree 2, and {reason}")
    assert message.endswith("; the nearest plan has --tensor 1")


STAGED = [name for name, target in TARGETS.items() if target.framework.stages is None]
"""Targets that take stages."""


@pytest.mark.parametrize("target", STAGED)
def test_a_framework_takes_the_tensor_groups_that_solve_plans_for_it(target: str) -> None:
    takes = TARGETS[target].framework.tensor_groups
    assert (takes == "none") == bool(TARGETS[target].no_tensor_groups)

    def split(plan: Plan) -> Plan:
        return in_groups(plan, 2, sequence_parallel=True)

    plan = language_plan([2, 2])
    if takes == "none":
        refusal(in_groups(plan, 2), target)
    else:
        export_plan(in_groups(plan, 2), target)
    if takes == "any":
        export_plan(split(plan), target)
    else:
        refusal(split(plan), target)
