"""The export to DeepSpeed: a PipelineModule with the plan's boundaries, and its JSON configuration.

Neither DeepSpeed's configuration nor its constructor takes a partition, so a subclass sets the
boundaries. The default `gradient_clipping` is 1.0. Without ZeRO in full precision, the norm then
counts the first stage's parameters alone, and training depends on the cuts. The export writes 0.0;
a user must change it knowingly.
"""

import json
from importlib import resources
from itertools import accumulate
from string import Template

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.model_units import UnitStage, refuse_recomputed_loss
from autopart.exporters.pipeline_shape import Shape, rank_notes, refuse_single_rank, shape_of
from autopart.exporters.selective import selective_files
from autopart.exporters.text import mark, rows
from autopart.records.plan import Plan, follows_its_name

VERSIONS = ("0.19.8",)
_NAME = "DeepSpeed"
CLIPPING_NOTE = (
    "gradient_clipping is off: in float32 without ZeRO, DeepSpeed's norm counts the first stage only, "
    "and training would depend on the cuts"
)

_SELECTIVE = Template("""
# Layers that run their forward again before their backward, except their products with weights.
SELECTIVE = ${layers}
""")
_BUILD = """
    def _build(self):
        super()._build()
        for place, layer in enumerate(self.forward_funcs):
            if self._local_start + place not in SELECTIVE:
                continue
            if hasattr(layer, "forward"):  # a module stays in its place for checkpoints
                layer.forward = recomputing(layer.forward)
            else:
                self.forward_funcs[place] = recomputing(layer)
"""

NO_TENSOR_GROUPS = (
    "DeepSpeed's AutoTP knows no stages: it sums gradients over GPUs of different stages"
)
"""Why a plan with a tensor degree is refused.

Its `_init_tp_mesh_device` forms data groups over all processes: with 2 stages and degree 2 they are
(0, 2) and (1, 3), which hold different stages.
"""


def export_to_deepspeed(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """Write `autopart_deepspeed.py` with the class `PlannedPipeline`, and
    `autopart_deepspeed.json`.

    Raises ExportRefused where DeepSpeed cannot run the plan.
    """
    shape = shape_of(plan, _NAME)
    refuse_single_rank(shape, _NAME)
    refuse_recomputed_loss(stages, _NAME)
    _refuse_orders(plan, shape)
    units = [unit for stage in stages for unit in stage.units]
    recomputed = sorted(units.index(unit) for stage in stages for unit in stage.recompute)
    selective = sorted(units.index(unit) for stage in stages for unit in stage.selective)
    folder = resources.files("autopart.exporters")
    template = Template(folder.joinpath("deepspeed.py.tmpl").read_text(encoding="utf-8"))
    text = template.substitute(
        mark=mark(plan),
        version=version,
        units="[\n" + rows(stage.units for stage in stages) + "]",
        parts=tuple(accumulate((len(stage.units) for stage in stages), initial=0)),
        recomputed=recomputed,
        selective=_SELECTIVE.substitute(layers=selective) if selective else "",
        imports="from autopart_selective import recomputing\n" if selective else "",
        build=_BUILD if selective else "",
        num_ranks=shape.num_ranks * shape.num_replicas,
    )
    config = json.dumps(_config(plan, shape, bool(recomputed)), indent=2) + "\n"
    files = {"autopart_deepspeed.py": text, "autopart_deepspeed.json": config}
    files |= selective_files(plan, stages)
    return Exported(files, (*rank_notes(shape), CLIPPING_NOTE))


def _refuse_orders(plan: Plan, shape: Shape) -> None:
    if shape.stages_per_rank > 1:
        raise ExportRefused(
            f"DeepSpeed's PipelineModule has one stage per rank, and the plan has "
            f"{shape.stages_per_rank}; the nearest plan has one, with --schedule 1f1b"
        )
    if plan.schedule != "1f1b" or not follows_its_name(plan):
        does = "orders of its own" if plan.schedule == "1f1b" else plan.schedule
        raise ExportRefused(
            f"DeepSpeed runs 1f1b, and this plan runs {does}; the nearest plan has --schedule 1f1b"
        )


def _config(plan: Plan, shape: Shape, recomputes: bool) -> dict[str, object]:
    return {
        "autopart": mark(plan),
        "train_micro_batch_size_per_gpu": plan.microbatch_size,
        "gradient_accumulation_steps": shape.num_microbatches,
        "train_batch_size": plan.microbatch_size * plan.num_microbatches,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": int(plan.training.zero1)},
        "pipeline": {
            "activation_checkpoint_interval": int(recomputes),
            "use_reentrant": False,
        },
    }
