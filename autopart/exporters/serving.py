"""A plan's cuts where a model is served, not trained: vLLM's list of counts, and the `device_map` of
Hugging Face Accelerate. Schedule, microbatches and recomputing have no meaning there."""

import json

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.shape import Shape, shape_of
from autopart.exporters.text import comments
from autopart.exporters.units import (
    EMBEDDING,
    HEAD,
    NORM,
    UnitStage,
    blocks,
    refuse_elsewhere,
    refuse_unknown_units,
)
from autopart.plan import Plan

VLLM_VERSIONS = ("0.10",)
DEVICE_MAP_VERSIONS = ("1.15.0",)


def export_to_vllm(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """`autopart_vllm.sh` with `VLLM_PP_LAYER_PARTITION`; raises ExportRefused."""
    shape = _one_stage_a_rank(plan, "vLLM")
    refuse_unknown_units(stages, "vLLM")
    for unit, place in ((EMBEDDING, 0), (NORM, len(stages) - 1), (HEAD, len(stages) - 1)):
        refuse_elsewhere(stages, unit, place, "vLLM")
    counts = ",".join(str(len(blocks(stage.units))) for stage in stages)
    notes = ("vLLM serves: the plan balances training, of which only the cuts are left",)
    text = (
        f"{comments(plan, notes)}# source this file, and start vllm serve with "
        f"--pipeline-parallel-size {shape.num_ranks}\n"
        f"export VLLM_PP_LAYER_PARTITION={counts}\n"
    )
    return Exported({"autopart_vllm.sh": text}, notes)


def export_to_device_map(plan: Plan, version: str) -> Exported:
    """`autopart_device_map.json`: the device of each module, by the plan's own names; raises
    ExportRefused."""
    _one_stage_a_rank(plan, "a device_map")
    devices: dict[str, int] = {}
    for index, stage in enumerate(plan.stages):
        for layer in stage.layers:
            name = layer.partition("@")[0]
            if name != "loss" and devices.setdefault(name, index) != index:
                raise ExportRefused(
                    f"module '{name}' runs on devices {devices[name]} and {index}, and a device_map "
                    f"puts it on one; solve with --same-stage {name},{layer}"
                )
    notes = (
        "device_map runs the stages one after the other, on one process; parameters that stand in no "
        "layer need an entry of yours",
    )
    return Exported({"autopart_device_map.json": json.dumps(devices, indent=2) + "\n"}, notes)


def _one_stage_a_rank(plan: Plan, framework: str) -> Shape:
    shape = shape_of(plan, framework)
    if shape.stages_per_rank > 1:
        raise ExportRefused(
            f"{framework} has one stage a device, and the plan has {shape.stages_per_rank} on a rank; "
            "the nearest plan has one"
        )
    return shape
