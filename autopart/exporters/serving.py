"""Exports for serving, not training: vLLM's layer counts, and Hugging Face Accelerate's
`device_map`.

Schedule, microbatches and recomputation have no meaning there.
"""

import json

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.model_units import (
    EMBEDDING,
    HEAD,
    NORM,
    UnitStage,
    blocks,
    refuse_elsewhere,
    refuse_unknown_units,
)
from autopart.exporters.pipeline_shape import Shape, shape_of
from autopart.exporters.text import comments
from autopart.records.plan import Plan

VLLM_VERSIONS = ("0.10",)
DEVICE_MAP_VERSIONS = ("1.15.0",)
NO_TENSOR_GROUPS = (
    "Hugging Face takes either a device_map or a tp_size, and its own stages are equal and run no "
    "backward; --to automodel trains its models with a tensor degree"
)
"""Why a `device_map` refuses a plan with a tensor degree (transformers 5.24)."""


def export_to_vllm(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """Write `autopart_vllm.sh` with `VLLM_PP_LAYER_PARTITION`; raises ExportRefused."""
    shape = _one_stage_per_rank(plan, "vLLM")
    refuse_unknown_units(stages, "vLLM")
    for unit, place in ((EMBEDDING, 0), (NORM, len(stages) - 1), (HEAD, len(stages) - 1)):
        refuse_elsewhere(stages, unit, place, "vLLM")
    counts = ",".join(str(len(blocks(stage.units))) for stage in stages)
    notes = ("vLLM serves the model: the export keeps only the cuts, which balance training",)
    tensor = f" --tensor-parallel-size {shape.tensor_degree}" if shape.tensor_degree > 1 else ""
    text = (
        f"{comments(plan, notes)}# Source this file, then start vllm serve with "
        f"--pipeline-parallel-size {shape.num_ranks}{tensor}\n"
        f"export VLLM_PP_LAYER_PARTITION={counts}\n"
    )
    return Exported({"autopart_vllm.sh": text}, notes)


def export_to_device_map(plan: Plan, version: str) -> Exported:
    """Write `autopart_device_map.json`: a device for each module, by the plan's names; raises
    ExportRefused."""
    _one_stage_per_rank(plan, "a device_map")
    devices: dict[str, int] = {}
    for index, stage in enumerate(plan.stages):
        for layer in stage.layers:
            name = layer.partition("@")[0]
            if name != "loss" and devices.setdefault(name, index) != index:
                raise ExportRefused(
                    f"module '{name}' runs on devices {devices[name]} and {index}, and a device_map "
                    f"has one device per module; solve with --same-stage {name},{layer}"
                )
    notes = (
        "device_map runs the stages one after another, in one process; add entries for parameters "
        "outside all layers",
    )
    return Exported({"autopart_device_map.json": json.dumps(devices, indent=2) + "\n"}, notes)


def _one_stage_per_rank(plan: Plan, framework: str) -> Shape:
    shape = shape_of(plan, framework)
    if shape.stages_per_rank > 1:
        raise ExportRefused(
            f"{framework} has one stage per device, and the plan has {shape.stages_per_rank} per rank; "
            "the nearest plan has one"
        )
    return shape
