"""The export to Hugging Face accelerate: FSDP2 without a pipeline, as its configuration file.

accelerate wraps each decoder layer, and gathers its weights in each microbatch. With `fsdp_reshard_after_forward` it frees
them after the forward and gathers them again for the backward, which is zero3. Without it, they stay from the forward to the
backward. It scatters gradients in each microbatch with `sync_each_batch`, and else in the last one.
"""

from collections.abc import Sequence

from autopart.errors import ExportRefused, UsageError
from autopart.exporters.exported import Exported
from autopart.exporters.fsdp_groups import data_degrees, samples_per_process, wider_state_note
from autopart.exporters.model_units import UnitStage, recomputes_all, refuse_other_recompute
from autopart.exporters.pipeline_shape import Shape, rank_notes, shape_of
from autopart.exporters.selective import refuse_selective
from autopart.exporters.text import comments
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.records.rank_group import Group
from autopart.records.training import has_master_copies, weight_dtype
from autopart.text import counted

VERSIONS = ("1.15.0",)
FILE = "autopart_accelerate.yaml"
_NAME = "Hugging Face accelerate"
_EXCHANGES = {False: "allgather", True: "alltoall"}
"""torch's exchange of keys and values, by whether the plan has a ring. Its all-to-all passes them on, block by block."""
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}


def layer_classes(plan: Plan, profile: Profile) -> tuple[str, ...]:
    """The classes of the layers that a model repeats, for accelerate to wrap; raises UsageError for another model."""
    layers = profile.graph.layers
    if {layer.name for layer in layers} != {name for stage in plan.stages for name in stage.layers}:
        raise UsageError(f"the profile of {profile.source.model} has other layers than the plan")
    kinds = [layer.kind for layer in layers if layer.param_bytes > 0 and layer.kind.isidentifier()]
    return tuple(dict.fromkeys(kind for kind in kinds if kinds.count(kind) > 1))


def export_to_accelerate(
    plan: Plan, stages: tuple[UnitStage, ...], version: str, classes: Sequence[str]
) -> Exported:
    """Write `autopart_accelerate.yaml` for `accelerate launch --config_file`.

    `classes` are those of the layers to wrap; the model's own choice without any. Raises ExportRefused where accelerate
    cannot run the plan.
    """
    _refuse_stages(plan)
    shape = shape_of(plan, _NAME)
    _refuse_groups(plan, shape)
    refuse_selective(stages, f"{_NAME} recomputes whole layers")
    refuse_other_recompute(stages, _NAME)
    recomputes = recomputes_all(
        stages, _NAME, "--recompute-layer and --keep-layer choose them; --to torch"
    )
    notes = _notes(plan, shape, classes)
    text = comments(plan, notes) + _settings(plan, shape, classes, recomputes=recomputes)
    return Exported({FILE: text}, notes)


def _settings(plan: Plan, shape: Shape, classes: Sequence[str], *, recomputes: bool) -> str:
    degrees = data_degrees(plan, shape)
    machines = -(-shape.num_gpus // plan.cluster.gpus_per_node)
    mixed = _PRECISIONS[weight_dtype(plan.training)] if has_master_copies(plan.training) else "no"
    wrapped = f"  fsdp_transformer_layer_cls_to_wrap: {','.join(classes)}\n" if classes else ""
    words = f"  parallelism_config_cp_comm_strategy: {_EXCHANGES[shape.has_ring]}\n"
    exchange = words if shape.context_degree > 1 else ""
    return (
        "compute_environment: LOCAL_MACHINE\n"
        "distributed_type: FSDP\n"
        f"mixed_precision: '{mixed}'\n"
        f"num_machines: {machines}\n"
        f"num_processes: {shape.num_gpus}\n"
        "fsdp_config:\n"
        "  fsdp_version: 2\n"
        f"  fsdp_reshard_after_forward: {str(_is_zero3(plan)).lower()}\n"
        f"  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n{wrapped}"
        "  fsdp_state_dict_type: SHARDED_STATE_DICT\n"
        "  fsdp_offload_params: false\n"
        f"  fsdp_activation_checkpointing: {str(recomputes).lower()}\n"
        "parallelism_config:\n"
        f"  parallelism_config_dp_replicate_size: {degrees.replicate}\n"
        f"  parallelism_config_dp_shard_size: {degrees.shard}\n"
        f"  parallelism_config_tp_size: {shape.tensor_degree}\n"
        f"  parallelism_config_cp_size: {shape.context_degree}\n{exchange}"
    )


def _is_zero3(plan: Plan) -> bool:
    return isinstance(plan.group, Group) and plan.group.shard == "zero3"


def _refuse_stages(plan: Plan) -> None:
    if len(plan.stages) > 1:
        raise ExportRefused(
            f"the plan has {counted(len(plan.stages), 'stage')}, and {_NAME} runs the whole model in each process; the "
            "nearest plan has --stages 1; --to torchtitan and --to automodel take stages"
        )


def _refuse_groups(plan: Plan, shape: Shape) -> None:
    """Raise ExportRefused where no state is shared, and where tensor groups split the sequence."""
    if shape.shard_degree == 1:
        raise ExportRefused(
            f"the plan shares no weights and no gradients, and {_NAME}'s FSDP shares both or gradients alone; the nearest "
            "plans have --shard zero3 and --shard zero2"
        )
    if shape.sequence_parallel:
        raise ExportRefused(
            f"the plan has sequence parallelism, and {_NAME} has no setting for it in tensor groups; the nearest plan "
            "has --sequence-parallel off"
        )


def _notes(plan: Plan, shape: Shape, classes: Sequence[str]) -> tuple[str, ...]:
    """What the training script must say itself, and where accelerate does otherwise than planned."""
    m, once = shape.num_microbatches, not _scatters_each(plan)
    notes = [
        f"in the training script set per_device_train_batch_size to {samples_per_process(plan, shape)} and "
        f"gradient_accumulation_steps to {m}"
    ]
    if m > 1 and not once:
        notes.append(
            "gradient_accumulation_kwargs need sync_each_batch: the plan scatters gradients in each microbatch"
        )
    if m > 1 and not _is_zero3(plan):
        notes.append(
            f"{_NAME} gathers weights in each of {counted(m, 'microbatch')}, and the plan once per step: the step takes "
            "longer than predicted"
        )
    if not classes:
        notes.append(
            "without --profile the model's own _no_split_modules say which layers are wrapped"
        )
    if shape.tensor_degree > 1:
        notes.append("load the model with tp_plan='auto', and the device mesh of its tensor ranks")
    if shape.context_degree > 1:
        notes.append(
            f"the length of sequences must be a multiple of {2 * shape.context_degree}, and attention must be torch's "
            "scaled dot products"
        )
    return (*rank_notes(shape), *wider_state_note(plan, shape, _NAME), *notes)


def _scatters_each(plan: Plan) -> bool:
    return isinstance(plan.group, Group) and plan.group.reduce == "microbatch"
