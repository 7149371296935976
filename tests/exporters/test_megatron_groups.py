"""Exports of plans with a context or expert degree: Megatron-Core's words, and refusals."""

import msgspec
import pytest
import yaml

from autopart.exporters.exported import Exported
from autopart.exporters.megatron import VERSIONS
from autopart.exporters.targets import TARGETS, export_plan
from autopart.records.plan import Plan
from tests.exporters.test_targets import files, refusal
from tests.exporters.test_tensor_degrees import STAGED
from tests.support.exporters.language import language_plan
from tests.support.tensor_plans import in_groups


def with_samples(plan: Plan, samples: int, *, zero1: bool = False) -> Plan:
    """The plan with microbatches of so many samples."""
    training = msgspec.structs.replace(plan.training, zero1=zero1)
    return msgspec.structs.replace(plan, microbatch_size=samples, training=training)


def arguments(exported: Exported) -> dict[str, str]:
    """The words after each argument."""
    lines = exported.files["autopart_megatron.sh"].splitlines()
    given = [line.strip().split(" ", 1) for line in lines if line.startswith("    --")]
    return {words[0]: " ".join(words[1:]) for words in given}


@pytest.mark.parametrize(("ring", "exchange"), [(False, "all_gather"), (True, "p2p")])
@pytest.mark.parametrize("version", VERSIONS)
def test_megatron_gets_the_context_degree(version: str, ring: bool, exchange: str) -> None:
    plan = language_plan([2, 2], replicas=2)
    plan = in_groups(plan, 2, sequence_parallel=True, context=4, ring=ring)
    exported = export_plan(plan, "megatron", version=version)
    given = arguments(exported)
    assert given["--context-parallel-size"] == "4" and given["--cp-comm-type"] == exchange
    assert given["--tensor-model-parallel-size"] == "2" and "--sequence-parallel" in given
    assert given["--micro-batch-size"] == str(plan.microbatch_size)
    assert any("--seq-length must be a multiple of 8" in note for note in exported.notes)
    assert "multiple of 8" in exported.files["autopart_megatron.sh"]
    if version == VERSIONS[0]:
        fields = yaml.safe_load(exported.files["autopart_megatron.yaml"])
        assert (fields["context_parallel_size"], fields["cp_comm_type"]) == (4, exchange)


@pytest.mark.parametrize("version", VERSIONS)
def test_megatron_gets_the_expert_degree_with_its_samples_per_process(version: str) -> None:
    plan = with_samples(in_groups(language_plan([2, 2], replicas=2), 1, expert=4), 8)
    exported = export_plan(plan, "megatron", version=version)
    given = arguments(exported)
    assert given["--expert-model-parallel-size"] == "4" and "--moe-grouped-gemm" in given
    assert given["--moe-token-dispatcher-type"] == "alltoall"
    # 2 replicas of 4 processes with 2 samples each run the 8 microbatches of a replica.
    assert given["--micro-batch-size"] == "2" and given["--global-batch-size"] == "128"
    assert any("needs your --num-experts, a multiple of 4" in note for note in exported.notes)
    if version == VERSIONS[0]:
        fields = yaml.safe_load(exported.files["autopart_megatron.yaml"])
        assert fields["expert_model_parallel_size"] == 4 and fields["moe_grouped_gemm"] is True


def test_megatron_gets_both_degrees_and_a_note_on_its_expert_groups() -> None:
    plan = with_samples(in_groups(language_plan([2, 2]), 1, context=4, expert=2), 8)
    exported = export_plan(plan, "megatron")
    given = arguments(exported)
    assert given["--context-parallel-size"] == "4"
    assert given["--expert-model-parallel-size"] == "2"
    # Two processes with 4 samples each run the 8 microbatches.
    assert given["--micro-batch-size"] == "4" and given["--global-batch-size"] == "64"
    told = "expert groups of 2 consecutive GPUs, and the plan's GPUs of an expert group stand 4 context"
    assert any(told in note for note in exported.notes)


def test_a_plan_without_these_degrees_has_no_word_of_them() -> None:
    text = "".join(files(language_plan([2, 2]), "megatron").values())
    assert not any(word in text for word in ("context", "cp", "expert", "moe"))


@pytest.mark.parametrize(
    ("context", "expert", "told"),
    [(2, 1, "the state of all weights over 4 GPUs"), (1, 2, "weights without experts over 4 GPUs")],
)
def test_a_note_says_that_zero1_shares_state_over_more_gpus(
    context: int, expert: int, told: str
) -> None:
    plan = in_groups(language_plan([2, 2], replicas=2), 1, context=context, expert=expert)
    plan = with_samples(plan, 8, zero1=True)
    exported = export_plan(plan, "megatron")
    assert "--use-distributed-optimizer" in arguments(exported)
    (note,) = (note for note in exported.notes if "--use-distributed-optimizer" in note)
    assert told in note and note.endswith("over 2 replicas: memory is smaller than predicted")
    whole = export_plan(with_samples(plan, 8), "megatron").notes
    assert not any("distributed" in note for note in whole)


def test_gpus_are_listed_in_megatrons_order() -> None:
    ranks = [[0, 2], [1, 3]]  # Megatron numbers the first stage's replicas first.
    plan = language_plan([2, 2], replicas=2)
    stages = tuple(
        msgspec.structs.replace(stage, ranks=tuple(own))
        for stage, own in zip(plan.stages, ranks, strict=True)
    )
    orders = tuple(plan.orders[at] for at in (0, 2, 1, 3))
    plan = in_groups(msgspec.structs.replace(plan, stages=stages, orders=orders), 1, context=2)
    assert "the plan's GPUs 0, 1, 4, 5, 2, 3, 6, 7" in export_plan(plan, "megatron").notes[0]


def test_megatron_refuses_experts_in_tensor_groups_without_sequence_parallelism() -> None:
    plan = with_samples(in_groups(language_plan([2, 2]), 2, expert=2), 8)
    message = refusal(plan, "megatron")
    assert message.startswith("the plan has tensor degree 2 and expert degree 2 without sequence")
    assert message.endswith("; the nearest plan has --sequence-parallel on")
    export_plan(
        with_samples(in_groups(language_plan([2, 2]), 2, sequence_parallel=True, expert=2), 8),
        "megatron",
    )


@pytest.mark.parametrize("kind", ["context", "expert"])
@pytest.mark.parametrize("target", STAGED)
def test_a_framework_takes_the_degrees_that_solve_plans_for_it(target: str, kind: str) -> None:
    context, expert = (2, 1) if kind == "context" else (1, 2)
    plan = in_groups(language_plan([2, 2]), 1, context=context, expert=expert)
    plan = with_samples(plan, 8)
    if getattr(TARGETS[target].framework, kind):
        export_plan(plan, target)
        return
    message = refusal(plan, target)
    assert message.startswith(
        f"the plan has {kind} degree 2, and an export for {target} has no {kind} degree"
    )
    assert message.endswith("--to megatron and --to torchtitan take this plan")


def paired(schedule: str = "paired-interleaved-1f1b", *, expert: int = 2) -> Plan:
    """A plan in bfloat16 with overlapped pairs, two stages on each of two ranks."""
    per_rank = 1 if schedule == "paired-1f1b" else 2
    plan = with_samples(language_plan([2] * 2 * per_rank, 2, schedule), 4)
    training = msgspec.structs.replace(plan.training, precision="bfloat16-mixed")
    plan = msgspec.structs.replace(plan, training=training)
    return in_groups(plan, 1, expert=expert) if expert > 1 else plan


def test_megatron_gets_overlapped_pairs_beside_experts() -> None:
    exported = export_plan(paired(), "megatron")
    assert "--overlap-moe-expert-parallel-comm" in arguments(exported)
    fields = yaml.safe_load(exported.files["autopart_megatron.yaml"])
    assert fields["overlap_moe_expert_parallel_comm"] is True
    assert any("needs --bf16 or --fp16" in note for note in exported.notes)
    plain = export_plan(with_samples(in_groups(language_plan([2, 2]), 1, expert=2), 8), "megatron")
    assert "--overlap-moe-expert-parallel-comm" not in arguments(plain)


@pytest.mark.parametrize(
    ("plan", "target", "message"),
    [
        (paired(expert=1), "megatron", "only for the all-to-alls of an expert degree above 1"),
        (paired("paired-1f1b"), "megatron", "this plan runs paired-1f1b; the nearest plan has"),
        (paired(), "primus", "this plan runs paired-interleaved-1f1b"),
        (
            msgspec.structs.replace(
                paired(), training=msgspec.structs.replace(paired().training, precision="float32")
            ),
            "megatron",
            "trains in float32, and Megatron-Core overlaps all-to-alls of experts in bfloat16",
        ),
    ],
)
def test_pairs_that_megatron_cannot_run_are_refused(plan: Plan, target: str, message: str) -> None:
    assert message in refusal(plan, target)
