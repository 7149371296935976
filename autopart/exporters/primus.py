"""The export to AMD Primus, as YAML. Its Megatron recomputes single layers and runs a V.

Primus has its own pipeline beside Megatron's. Without `patch_primus_pipeline` it reads and ignores
`pp_algorithm`, so both are written or neither. Its tables for few microbatches name microbatches
that do not exist. Its `v-half` and `v-min` differ from the orders in `autopart.schedules`.
"""

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.megatron import (
    SELECTIVE,
    SELECTIVE_NOTE,
    layout_of,
    megatron_shape,
    recompute_fields,
    refuse_orders,
)
from autopart.exporters.megatron_groups import group_fields, group_notes, refuse_groups
from autopart.exporters.model_units import UnitStage, blocks
from autopart.exporters.pipeline_shape import Shape, rank_notes
from autopart.exporters.selective import selects_all
from autopart.exporters.text import comments
from autopart.records.plan import Plan, follows_its_name
from autopart.text import counted

VERSIONS = ("2026",)
_NAME = "AMD Primus"

ALGORITHMS = {"zb-h1": "zero-bubble", "zbv": "zbv-formatted"}
"""The `pp_algorithm` name for each schedule that Primus's own pipeline runs."""


def export_to_primus(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """Write `autopart_primus.yaml`, overrides for a pre-training module; raises ExportRefused."""
    shape = megatron_shape(plan, stages, _NAME)
    algorithm = _algorithm(plan, shape)
    refuse_groups(plan, shape, _NAME)
    chosen = [str(number) for stage in stages for number in blocks(stage.recompute)]
    recompute = (
        "recompute_granularity: full\nrecompute_method: null\n"
        f'recompute_layer_ids: "{",".join(chosen)}"\n'
        if chosen
        else ""
    )
    selects = selects_all(stages, _NAME)
    if selects:
        recompute = recompute_fields(SELECTIVE)
    notes = (*rank_notes(shape), *group_notes(plan, shape), *((SELECTIVE_NOTE,) if selects else ()))
    notes += ("this file is not tested with Primus: try a few steps first",)
    text = (
        f"{comments(plan, notes)}"
        f"use_distributed_optimizer: {str(plan.training.zero1).lower()}\n"
        f"pipeline_model_parallel_size: {shape.num_ranks}\n{group_fields(plan, shape)}"
        f'pipeline_model_parallel_layout: "{layout_of(stages)}"\n{algorithm}'
        f"num_layers: {sum(len(blocks(stage.units)) for stage in stages)}\n"
        f"micro_batch_size: {plan.microbatch_size // shape.expert_degree}\n"
        f"global_batch_size: {plan.microbatch_size * plan.num_microbatches}\n{recompute}"
    )
    return Exported({"autopart_primus.yaml": text}, notes)


def _algorithm(plan: Plan, shape: Shape) -> str:
    """The lines that choose the schedule; raises ExportRefused where Primus lacks the orders."""
    if plan.schedule not in ALGORITHMS and shape.placement == "loop":
        refuse_orders(plan, shape, _NAME)
        return "patch_primus_pipeline: false\n"
    if plan.schedule not in ALGORITHMS or not follows_its_name(plan):
        raise ExportRefused(
            f"{_NAME} runs 1f1b, interleaved-1f1b, {' and '.join(ALGORITHMS)}; this plan runs "
            f"{'orders of its own' if plan.schedule in ALGORITHMS else plan.schedule}; the nearest "
            f"plan has --schedule {'zb-h1' if shape.placement == 'loop' else 'zbv'}"
        )
    least = shape.num_ranks if plan.schedule == "zb-h1" else 2 * shape.num_ranks - 1
    if shape.num_microbatches < least:
        raise ExportRefused(
            f"{_NAME} runs {plan.schedule} on {counted(shape.num_ranks, 'rank')} with at least "
            f"{counted(least, 'microbatch')} per replica, and this plan has {shape.num_microbatches}; the nearest plan has "
            f"{counted(least * shape.num_replicas, 'microbatch')}"
        )
    return f"patch_primus_pipeline: true\npp_algorithm: {ALGORITHMS[plan.schedule]}\n"
