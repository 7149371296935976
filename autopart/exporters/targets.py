"""The export targets. Importing them imports no framework."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from autopart.errors import UsageError
from autopart.exporters import automodel, deepspeed, megatron, primus, serving, torchtitan
from autopart.exporters.exported import Exported
from autopart.exporters.layer_order import check_layer_order
from autopart.exporters.model_units import Renaming, UnitStage, units_of
from autopart.exporters.torch import module as torch_module
from autopart.records.cluster import Sends
from autopart.records.plan import Plan
from autopart.records.training import Sync


class Target(NamedTuple):
    """A framework, and the plan features that it supports."""

    title: str
    versions: tuple[str, ...]
    """Supported versions; the first is the default."""
    schedules: str
    stages: str
    """Supported stages per rank."""
    recompute: str
    sync: Sync = "end"
    """Whose gradient sync the framework runs: the word of `--sync`."""
    of_units: Callable[[Plan, tuple[UnitStage, ...], str], Exported] | None = None
    """The exporter for frameworks with their own models; None for others."""
    sends: Sends = "rendezvous"
    """Whether its sends wait for their receiver: all but serving targets ask right before an action."""
    takes_any_unit: bool = False
    """Whether layers may have any name, because the user's model is a list."""
    of_layers: Callable[[Plan, str], Exported] | None = None
    """The exporter that uses the plan's own layer names; None for others."""


_TORCH = "torch's, or a CSV"
_WHOLE = f"{_TORCH}; whole backwards"

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "torch": Target(
            "torch.distributed.pipelining", torch_module.VERSIONS, _TORCH, "any",
            "any modules, whole or except products",
            of_layers=torch_module.export_to_torch,
        ),
        "torchtitan": Target(
            "torchtitan", torchtitan.VERSIONS, _WHOLE, "any, or a V of 2",
            "any layers (0.2.2: all or none)", "fsdp2", torchtitan.export_to_torchtitan,
        ),
        "megatron": Target(
            "Megatron-Core", megatron.VERSIONS, "1f1b, interleaved-1f1b", "any",
            "the first layers of each stage", "megatron", megatron.export_to_megatron,
        ),
        "deepspeed": Target(
            "DeepSpeed", deepspeed.VERSIONS, "1f1b", "1", "any layers",
            "deepspeed", deepspeed.export_to_deepspeed, takes_any_unit=True,
        ),
        "automodel": Target(
            "NeMo AutoModel", automodel.VERSIONS, _WHOLE, "any, or a V of 2",
            "all or none", "fsdp2", automodel.export_to_automodel,
        ),
        "primus": Target(
            "AMD Primus", primus.VERSIONS, "1f1b, interleaved-1f1b, zb-h1, zbv", "any, or a V of 2",
            "any layers", "megatron", primus.export_to_primus,
        ),
        "vllm": Target(
            "vLLM (serving)", serving.VLLM_VERSIONS, "-", "1", "-", of_units=serving.export_to_vllm,
            sends="buffered",
        ),
        "device-map": Target(
            "Hugging Face Accelerate (inference)", serving.DEVICE_MAP_VERSIONS, "-", "1", "-",
            sends="buffered", of_layers=serving.export_to_device_map,
        ),
    }
)  # fmt: skip
"""The frameworks that take a plan. None accepts offloaded layers."""


def export_plan(
    plan: Plan, target: str, *, version: str | None = None, renamings: Sequence[Renaming] = ()
) -> Exported:
    """Export a plan: the files that carry it out in a framework, and notes.

    `renamings` map layers to the framework's units, before the built-in rules for usual names.

    Raises ExportRefused where the framework cannot express the plan; the error names the nearest
    plan that it can. Raises UsageError on an unknown target or version, and PlanError where the
    layers' names show that stages list them backwards.
    """
    if target not in TARGETS:
        raise UsageError(f"cannot export to '{target}'; known: {', '.join(TARGETS)}")
    asked = TARGETS[target]
    written = version or asked.versions[0]
    if written not in asked.versions:
        raise UsageError(
            f"cannot export to {target} {written}; known versions: {', '.join(asked.versions)}"
        )
    check_layer_order(plan)
    if asked.of_units is not None:
        exported = asked.of_units(plan, units_for(plan, target, renamings), written)
    else:
        assert asked.of_layers is not None
        exported = asked.of_layers(plan, written)
    return exported._replace(notes=(*exported.notes, *_sync_notes(plan, target)))


def _sync_notes(plan: Plan, target: str) -> list[str]:
    """A note where the plan was solved for another framework's gradient sync."""
    own, solved = TARGETS[target].sync, plan.training.sync
    if solved in ("end", own) or not plan.prediction.syncs:
        return []
    return [
        f"the plan was solved with --sync {solved}, but {TARGETS[target].title} syncs gradients as "
        f"--sync {own} says; solve with that to predict its step"
    ]


def units_for(plan: Plan, target: str, renamings: Sequence[Renaming]) -> tuple[UnitStage, ...]:
    """The plan's stages in the units that `target` moves whole; raises ExportRefused."""
    return units_of(plan, renamings, keep_unknown=TARGETS[target].takes_any_unit)
