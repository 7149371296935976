"""The degrees of rank groups in Megatron-Core's words.

Megatron numbers processes by `tp-cp-ep-dp-pp`: tensor fastest, then context, then expert, then data, then stages. A
plan numbers the GPUs of a group in this order too. So only ranks can stand elsewhere, and `rank_notes` says so.

Each GPU of an expert group is a data-parallel process for Megatron. So R replicas of expert degree e are R x e of them,
with an e-th of the plan's microbatch each. Expert gradients are summed over the R replicas, all others over R x e.

With both degrees Megatron makes expert groups of e consecutive GPUs, whatever the context degree. The plan's stand c apart.
Each GPU sends as many bytes to as many others in both, so the export says this in a note.
"""

from autopart.errors import ExportRefused
from autopart.exporters.pipeline_shape import Shape
from autopart.records.plan import Plan
from autopart.records.problem import PAIRED
from autopart.records.training import HALF
from autopart.text import counted

CONTEXT_EXCHANGES = {False: "all_gather", True: "p2p"}
"""Megatron's exchange of keys and values, by whether the plan has a ring. Its ring hides sends beneath attention too."""
DISPATCHER = "alltoall"
"""The exchange of tokens that plans with an expert degree are priced for."""


def refuse_groups(plan: Plan, shape: Shape, framework: str) -> None:
    """Raise ExportRefused where Megatron-Core refuses the degrees together, or overlapped pairs beside them."""
    _refuse_pairs(plan, shape, framework)
    if shape.expert_degree > 1 and shape.tensor_degree > 1 and not shape.sequence_parallel:
        raise ExportRefused(
            f"the plan has tensor degree {shape.tensor_degree} and expert degree {shape.expert_degree} without "
            f"sequence parallelism, and {framework} trains a mixture of experts in tensor groups only with it; the "
            "nearest plan has --sequence-parallel on"
        )


def group_arguments(plan: Plan, shape: Shape) -> list[str]:
    """The arguments for the degrees above 1."""
    lines: list[str] = []
    if shape.tensor_degree > 1:
        lines.append(f"--tensor-model-parallel-size {shape.tensor_degree}")
    if shape.sequence_parallel:
        lines.append("--sequence-parallel")
    if shape.context_degree > 1:
        lines.append(f"--context-parallel-size {shape.context_degree}")
        lines.append(f"--cp-comm-type {CONTEXT_EXCHANGES[shape.has_ring]}")
    if shape.expert_degree > 1:
        lines.append(f"--expert-model-parallel-size {shape.expert_degree}")
        lines.append(f"--moe-token-dispatcher-type {DISPATCHER}")
        lines.append("--moe-grouped-gemm")
    if plan.schedule in PAIRED:
        lines.append("--overlap-moe-expert-parallel-comm")
    return lines


def group_fields(plan: Plan, shape: Shape) -> str:
    """The YAML lines for the degrees above 1; empty without them."""
    text = tensor_fields(shape)
    if shape.context_degree > 1:
        text += f"context_parallel_size: {shape.context_degree}\n"
        text += f"cp_comm_type: {CONTEXT_EXCHANGES[shape.has_ring]}\n"
    if shape.expert_degree > 1:
        text += (
            f"expert_model_parallel_size: {shape.expert_degree}\n"
            f"moe_token_dispatcher_type: {DISPATCHER}\nmoe_grouped_gemm: true\n"
        )
    if plan.schedule in PAIRED:
        text += "overlap_moe_expert_parallel_comm: true\n"
    return text


def tensor_fields(shape: Shape) -> str:
    """The YAML lines for tensor groups; empty without them."""
    if shape.tensor_degree == 1:
        return ""
    return (
        f"tensor_model_parallel_size: {shape.tensor_degree}\n"
        f"sequence_parallel: {str(shape.sequence_parallel).lower()}\n"
    )


def _refuse_pairs(plan: Plan, shape: Shape, framework: str) -> None:
    """Raise ExportRefused where Megatron-Core cannot run the plan's overlapped pairs."""
    if plan.schedule not in PAIRED:
        return
    if shape.expert_degree == 1:
        raise ExportRefused(
            f"the plan runs {plan.schedule}, and {framework} runs a forward beside a backward only for the all-to-alls of "
            f"an expert degree above 1; the nearest plan has --schedule {plan.schedule.removeprefix('paired-')}"
        )
    if not plan.training.precision.startswith(HALF):
        raise ExportRefused(
            f"the plan trains in {plan.training.precision}, and {framework} overlaps all-to-alls of experts in bfloat16 or "
            "float16 only; profile with --dtype bfloat16"
        )


def group_notes(plan: Plan, shape: Shape) -> tuple[str, ...]:
    """Notes on the demands of context and expert degrees, and on the optimizer state that Megatron shares."""
    notes: list[str] = []
    c, e, r = shape.context_degree, shape.expert_degree, shape.num_replicas
    if c > 1:
        notes.append(
            f"context degree {c} needs Transformer Engine 1.10 or newer for attention, and --seq-length must be a "
            f"multiple of {2 * c}"
        )
    if e > 1:
        notes.append(
            f"expert degree {e} needs your --num-experts, a multiple of {e}, and --disable-bias-linear for grouped "
            "GEMMs; no --moe-expert-capacity-factor, as the plan drops no token"
        )
    if plan.schedule in PAIRED:
        notes.append(
            "--overlap-moe-expert-parallel-comm needs --bf16 or --fp16, PyTorch 2.6 or newer, and no --moe-shared-expert-overlap; "
            "set CUDA_DEVICE_MAX_CONNECTIONS to 32 on GPUs before Blackwell"
        )
    if c > 1 and e > 1:
        notes.append(
            f"Megatron-Core makes expert groups of {e} consecutive GPUs, and the plan's GPUs of an expert group stand "
            f"{c} context ranks apart: messages are as large in both"
        )
    if plan.training.zero1 and c * e > 1:
        which = "weights without experts" if e > 1 else "all weights"
        notes.append(
            f"--use-distributed-optimizer shares the state of {which} over {counted(r * c * e, 'GPU')}, and the plan "
            f"shares it over {counted(r, 'replica')}: memory is smaller than predicted"
        )
    return tuple(notes)
