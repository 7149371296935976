"""A plan in the YAML of AMD Primus, whose Megatron takes single layers to recompute and a V."""

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.megatron import layout_of, megatron_shape
from autopart.exporters.shape import follows_its_name, rank_notes
from autopart.exporters.text import comments
from autopart.exporters.units import UnitStage, blocks
from autopart.plan import Plan

VERSIONS = ("2026",)
_NAME = "AMD Primus"

ALGORITHMS = {
    "1f1b": "1f1b",
    "interleaved-1f1b": "1f1b-interleaved",
    "zb-h1": "zero-bubble",
    "zbv": "zbv-formatted",
    "v-half": "v-half",
    "v-min": "v-min",
}
"""Schedules of `autopart.schedules` that `pp_algorithm` has a name for."""


def export_to_primus(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """`autopart_primus.yaml`, settings for the overrides of a pre-training module; raises
    ExportRefused."""
    shape = megatron_shape(plan, stages, _NAME)
    if plan.schedule not in ALGORITHMS or not follows_its_name(plan):
        raise ExportRefused(
            f"{_NAME} has schedules by name only, {', '.join(ALGORITHMS)}; this plan runs "
            f"{'orders of its own' if plan.schedule in ALGORITHMS else plan.schedule}"
        )
    chosen = [str(number) for stage in stages for number in blocks(stage.recompute)]
    recompute = (
        "recompute_granularity: full\nrecompute_method: null\n"
        f'recompute_layer_ids: "{",".join(chosen)}"\n'
        if chosen
        else ""
    )
    notes = (*rank_notes(shape), "Primus itself has not read this file: try a few steps first")
    text = (
        f"{comments(plan, notes)}"
        f"pipeline_model_parallel_size: {shape.num_ranks}\n"
        f'pipeline_model_parallel_layout: "{layout_of(stages)}"\n'
        f"pp_algorithm: {ALGORITHMS[plan.schedule]}\n"
        f"num_layers: {sum(len(blocks(stage.units)) for stage in stages)}\n"
        f"micro_batch_size: {plan.microbatch_size}\n"
        f"global_batch_size: {plan.microbatch_size * plan.num_microbatches}\n{recompute}"
    )
    return Exported({"autopart_primus.yaml": text}, notes)
