"""The export to torchtitan: Python for 0.3, TOML for 0.2.2.

For each stage torchtitan keeps the modules in a list. It checks nothing: it ignores an unknown name
and drops a missing layer. The export lists each unit once, and compares the number of layers where
it can. A subclass for torchtitan's policy recomputes single layers, whole or except their products.
Version 0.2.2 counts each rank's layers, and recomputes every n-th.
"""

import json
from collections.abc import Sequence
from importlib import resources
from string import Template

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
    UnitStage,
    blocks,
)
from autopart.exporters.pipeline_shape import Shape, rank_notes
from autopart.exporters.selective import refuse_selective, selective_files
from autopart.exporters.sharded_state import gather_notes
from autopart.exporters.text import comments, mark, rows
from autopart.exporters.torch.schedules import (
    CSV_FILE,
    CSV_NOTE,
    TorchSchedule,
    shape_under_fsdp,
    torch_schedule,
)
from autopart.exporters.torchtitan_groups import (
    data_settings,
    degree_parts,
    gather_files,
    group_settings,
    older_group_settings,
    refuse_in_older,
    tensor_settings,
)
from autopart.records.plan import Plan
from autopart.schedules.placements import loop, wave
from autopart.text import counted

VERSIONS = ("0.3.0", "0.2.2")
_HEADS = {"0.3.0": "lm_head", "0.2.2": "output"}
_NAME = "torchtitan"
_OWN_SELECTIVE = 'torchtitan 0.2.2 keeps attention and runs every second product again (selective_ac_option "op")'
_TO_MEGATRON = "--to megatron takes this plan"
_SPLIT_TAKERS = (
    f"{_TO_MEGATRON}, and --target-version 0.2.2 a tensor degree beside an expert degree"
)
SPMD_NOTE = (
    'under torch 2.13 set parallelism.spmd_backend = "partial_dtensor": its FSDP does not read the '
    "shards of torchtitan's default"
)


def export_to_torchtitan(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """Write `autopart_titan.py` with `apply(config)` for 0.3, or `autopart_titan.toml` for 0.2.2.

    Where no torch schedule gives the orders, a file with them comes too. Raises ExportRefused.
    """
    shape = shape_under_fsdp(plan, stages, _NAME)
    schedule = torch_schedule(plan, shape, _NAME)
    names = [[_named(unit, version) for unit in stage.units] for stage in stages]
    notes = (
        *rank_notes(shape),
        *gather_notes(plan),
        *wider_state_note(plan, shape, _NAME),
        *demand_notes(shape),
    )
    if version == "0.2.2":
        refuse_in_older(plan)
        if shape.tensor_degree > 1 and not shape.sequence_parallel:
            raise ExportRefused(
                "torchtitan 0.2.2 has tensor parallelism with sequence parallelism only; solve with "
                "--sequence-parallel on, or take --target-version 0.3.0"
            )
        # This version shards experts in tensor groups as the plan does.
        refuse_split_expert_groups(shape._replace(tensor_degree=1), f"{_NAME} 0.2.2", _TO_MEGATRON)
        notes += (CSV_NOTE,) if schedule.csv is not None else ()
        text = _toml(plan, shape, schedule, names, stages, notes)
        file = "autopart_titan.toml"
    else:
        refuse_split_expert_groups(shape, f"{_NAME} 0.3", _SPLIT_TAKERS)
        meshes = max(shape.gpus_per_rank, shape.num_replicas) > 1
        notes += (SPMD_NOTE,) if meshes else ()
        text = _python(plan, shape, schedule, names, stages)
        file = "autopart_titan.py"
    more = schedule.files | selective_files(plan, stages) | gather_files(plan)
    return Exported({file: text, **more}, notes)


def _named(unit: str, version: str) -> str:
    return {EMBEDDING: "tok_embeddings", HEAD: _HEADS[version]}.get(unit, unit)


def _python(
    plan: Plan,
    shape: Shape,
    schedule: TorchSchedule,
    names: list[list[str]],
    stages: tuple[UnitStage, ...],
) -> str:
    folder = resources.files("autopart.exporters")
    template = Template(folder.joinpath("torchtitan.py.tmpl").read_text(encoding="utf-8"))
    recompute = [f"layers.{index}" for stage in stages for index in blocks(stage.recompute)]
    selective = [f"layers.{index}" for stage in stages for index in blocks(stage.selective)]
    return template.substitute(
        _selective_parts(selective) | degree_parts(plan, shape),
        mark=mark(plan),
        num_ranks=shape.num_gpus,
        tensor="".join(
            f"    parallelism.{line}\n"
            for line in (*tensor_settings(shape), *group_settings(shape))
        ),
        stages="[\n" + rows(names) + "]",
        num_layers=sum(len(blocks(stage.units)) for stage in stages),
        recompute=json.dumps(recompute),
        degree=shape.num_ranks,
        data="".join(f"    parallelism.{line}\n" for line in data_settings(plan, shape)),
        schedule=schedule.name,
        csv=repr(CSV_FILE) if schedule.csv is not None else "None",
        microbatch_size=samples_per_process(plan, shape),
        num_microbatches=shape.num_microbatches,
    )


def _selective_parts(layers: list[str]) -> dict[str, str]:
    """The template's parts for layers that are recomputed selectively; empty without them."""
    if not layers:
        empty = ("selective", "and_selective", "wrap_selective", "imports")
        return {"recomputes": "RECOMPUTED"} | dict.fromkeys(empty, "")
    return {
        "imports": "from autopart_selective import KeepsProducts\n"
        "from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper\n",
        "selective": f"SELECTIVE = {json.dumps(layers)}\n",
        "and_selective": ", each in SELECTIVE\n    without its products",
        "wrap_selective": "        if base_fqn in SELECTIVE:\n"
        "            return checkpoint_wrapper(\n"
        "                module,\n"
        "                context_fn=KeepsProducts(),\n"
        "                preserve_rng_state=self.config.preserve_rng_state,\n"
        "                determinism_check=self.config.determinism_check,\n"
        "                debug=self.config.debug,\n"
        "            )\n",
        "recomputes": "RECOMPUTED or SELECTIVE",
    }


def _toml(
    plan: Plan,
    shape: Shape,
    schedule: TorchSchedule,
    names: list[list[str]],
    stages: tuple[UnitStage, ...],
    notes: tuple[str, ...],
) -> str:
    refuse_selective(stages, _OWN_SELECTIVE)
    csv = f'pipeline_parallel_schedule_csv = "{CSV_FILE}"\n' if schedule.csv is not None else ""
    return (
        comments(plan, notes) + "\n[training]\n"
        f"local_batch_size = {samples_per_process(plan, shape) * shape.num_microbatches}\n\n"
        "[parallelism]\n"
        f"pipeline_parallel_degree = {shape.num_ranks}\n"
        + "".join(f"{line}\n" for line in data_settings(plan, shape))
        + (f"tensor_parallel_degree = {shape.tensor_degree}\n" if shape.tensor_degree > 1 else "")
        + "".join(f"{line}\n" for line in older_group_settings(shape))
        + f'pipeline_parallel_schedule = "{schedule.name}"\n{csv}'
        f"pipeline_parallel_microbatch_size = {samples_per_process(plan, shape)}\n"
        f"module_fqns_per_model_part = [\n{rows(names)}]\n\n"
        f"[activation_checkpoint]\n{_mode(shape, stages)}"
    )


def _mode(shape: Shape, stages: Sequence[UnitStage]) -> str:
    """The settings under which 0.2.2 recomputes the planned layers; raises ExportRefused.

    It counts the layers on a rank, over all its stages, from 1, and recomputes those whose number is
    a multiple of n.
    """
    places = loop if shape.placement == "loop" else wave
    on_rank: dict[int, list[int]] = {}
    for stage, rank in zip(stages, places(shape.num_ranks, shape.stages_per_rank), strict=True):
        on_rank.setdefault(rank, []).extend(blocks(stage.units))
    chosen = {index for stage in stages for index in blocks(stage.recompute)}
    if not chosen:
        return 'mode = "none"\n'
    n = min(1 + at for own in on_rank.values() for at, layer in enumerate(own) if layer in chosen)
    every = {layer for own in on_rank.values() for layer in own[n - 1 :: n]}
    if every != chosen:
        raise ExportRefused(
            f"the plan recomputes {counted(len(chosen), 'layer')}, and {_NAME} 0.2.2 recomputes all, none, "
            "or every n-th of each rank's layers; --target-version 0.3.0 recomputes single layers"
        )
    return 'mode = "full"\n' if n == 1 else f'mode = "selective"\nselective_ac_option = "{n}"\n'
