"""The export to NeMo AutoModel, which trains Hugging Face models over torch's pipelining.

For each stage AutoModel keeps the modules in a list, like torchtitan, by their Hugging Face names.
"""

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.fsdp_groups import (
    demand_notes,
    refuse_split_expert_groups,
    samples_per_process,
    wider_state_note,
)
from autopart.exporters.model_units import (
    EMBEDDING,
    HEAD,
    NORM,
    UnitStage,
    recomputes_all,
)
from autopart.exporters.pipeline_shape import Shape, rank_notes
from autopart.exporters.selective import refuse_selective
from autopart.exporters.sharded_state import gather_notes
from autopart.exporters.text import comments, rows
from autopart.exporters.torch.schedules import (
    CSV_FILE,
    CSV_NOTE,
    TorchSchedule,
    shape_under_fsdp,
    torch_schedule,
)
from autopart.records.plan import Plan
from autopart.records.rank_group import Group
from autopart.text import counted

VERSIONS = ("0.7.0",)
_NAME = "NeMo AutoModel"
EXCHANGES_NOTE = (
    "NeMo AutoModel's tensor groups exchange more than the plan predicts: an input's gradient once per "
    "weight that reads it, and the whole logits, which take memory on each GPU of the last stage"
)

DISPATCH_NOTE = (
    "the plan sends each token to the GPUs of its experts: set model.backend.dispatcher to deepep in the recipe; torch "
    "there gathers all tokens of an expert group"
)
SUMS_NOTE = (
    "NeMo AutoModel sums the gradients of replicas in each microbatch too, and the plan once per step: the step takes "
    "longer than predicted"
)


def export_to_automodel(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """Write `autopart_automodel.yaml`, the `distributed` section for a recipe.

    Where no schedule in torch gives the plan's orders, a file with the orders comes with it. Raises
    ExportRefused where AutoModel cannot run the plan.
    """
    shape = shape_under_fsdp(plan, stages, _NAME)
    _refuse_few_microbatches(plan, shape)
    _refuse_sequence_parallel(shape)
    refuse_split_expert_groups(shape, _NAME, "--to megatron takes this plan")
    schedule = torch_schedule(plan, shape, _NAME)
    refuse_selective(
        stages, f"{_NAME}'s selective mode keeps attention and runs every second product again"
    )
    recomputes = recomputes_all(stages, _NAME, "--to torchtitan")
    names = rows([*map(_named, stage.units), "model.rotary_emb"] for stage in stages)
    csv = "" if schedule.csv is None else f"    pp_schedule_csv: {CSV_FILE}\n"
    notes = _notes(plan, shape, schedule)
    text = (
        f"{comments(plan, notes)}distributed:\n"
        f"  dp_size: {shape.num_replicas * shape.shard_degree * shape.expert_degree}\n{_shards(plan, shape)}"
        f"  pp_size: {shape.num_ranks}\n{_tensor(shape)}{_groups(shape)}"
        f"  activation_checkpointing: {'full' if recomputes else 'false'}\n"
        "  pipeline:\n"
        f"    pp_schedule: {schedule.name}\n{csv}"
        f"    pp_microbatch_size: {samples_per_process(plan, shape)}\n"
        f"    module_fqns_per_model_part: [\n{_indented(names)}    ]\n"
        "step_scheduler:\n"
        f"  local_batch_size: {samples_per_process(plan, shape) * shape.num_microbatches}\n"
        f"  global_batch_size: {plan.microbatch_size * plan.num_microbatches}\n"
    )
    return Exported({"autopart_automodel.yaml": text, **schedule.files}, notes)


def _refuse_few_microbatches(plan: Plan, shape: Shape) -> None:
    if shape.num_microbatches < shape.num_ranks:
        raise ExportRefused(
            f"{_NAME} needs at least {counted(shape.num_ranks, 'microbatch')} per replica, one per rank, and "
            f"this plan has {shape.num_microbatches}; the nearest plan has "
            f"{counted(shape.num_ranks * shape.num_replicas, 'microbatch')}"
        )


def _notes(plan: Plan, shape: Shape, schedule: TorchSchedule) -> tuple[str, ...]:
    notes = (
        *rank_notes(shape),
        *gather_notes(plan),
        *wider_state_note(plan, shape, _NAME),
        *demand_notes(shape),
    )
    if shape.num_replicas > 1 and shape.shard_degree == 1:
        notes += (
            f"{_NAME} shards each stage's parameters over its replicas (FSDP): they take less memory "
            + ("than" if plan.training.zero1 else "and more messages than")
            + " the plan predicts",
        )
    if shape.tensor_degree > 1:
        notes += (EXCHANGES_NOTE,)
    if shape.expert_degree > 1:
        notes += (DISPATCH_NOTE,)
    if _scatters_each(plan) and shape.num_replicas > 1:
        notes += (SUMS_NOTE,)
    if schedule.csv is not None:
        notes += (CSV_NOTE,)
    return notes


def _scatters_each(plan: Plan) -> bool:
    """Whether gradients are scattered in each microbatch, as with zero3."""
    return isinstance(plan.group, Group) and plan.group.reduce == "microbatch"


def _shards(plan: Plan, shape: Shape) -> str:
    """The settings of groups that share state; empty without them.

    Gathered weights stay through the step, and gradients are scattered at its end. With a sync in each
    microbatch AutoModel's own stages free weights after each backward too, which is zero3.
    """
    if shape.shard_degree * shape.context_degree * shape.expert_degree == 1:
        return ""
    many = shape.num_replicas > 1 and shape.shard_degree > 1
    replicate = f"  dp_replicate_size: {shape.num_replicas}\n" if many else ""
    each = str(_scatters_each(plan)).lower()
    once = str(not _scatters_each(plan)).lower()
    return f"{replicate}  reshard_after_forward: {each}\n  defer_fsdp_grad_sync: {once}\n"


def _groups(shape: Shape) -> str:
    """The settings of context and expert groups; empty without them.

    AutoModel's ring attention gathers keys and values (`cp_rotate_method="allgather"`), and gives each rank chunks i and
    2c - 1 - i of 2c.
    """
    text = f"  cp_size: {shape.context_degree}\n" if shape.context_degree > 1 else ""
    return text + (f"  ep_size: {shape.expert_degree}\n" if shape.expert_degree > 1 else "")


def _tensor(shape: Shape) -> str:
    """The settings of tensor groups; empty without them."""
    if shape.tensor_degree == 1:
        return ""
    return f"  tp_size: {shape.tensor_degree}\n  sequence_parallel: false\n"


def _refuse_sequence_parallel(shape: Shape) -> None:
    """Raise ExportRefused under sequence parallelism.

    AutoModel's `_precompute_stage_shapes` expects whole sequences between stages, and then a stage
    sends its slice.
    """
    if shape.sequence_parallel:
        raise ExportRefused(
            f"the plan has sequence parallelism, and {_NAME}'s stages expect whole sequences from "
            "each other; the nearest plan has --sequence-parallel off; --to megatron and "
            "--to torchtitan take this plan"
        )


def _named(unit: str) -> str:
    names = {EMBEDDING: "model.embed_tokens", NORM: "model.norm", HEAD: "lm_head"}
    return names.get(unit, f"model.{unit}")


def _indented(lines: str) -> str:
    return "".join(f"  {line}\n" for line in lines.splitlines())
