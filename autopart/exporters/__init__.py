"""A plan in the words of another framework, one file for each; nothing of it is imported here."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from autopart.errors import UsageError
from autopart.exporters import (
    automodel,
    deepspeed,
    megatron,
    primus,
    serving,
    torch_pipelining,
    torchtitan,
)
from autopart.exporters.exported import Exported
from autopart.exporters.units import Renaming, UnitStage, parse_renaming, units_of
from autopart.plan import Plan

__all__ = [
    "TARGETS",
    "Exported",
    "Renaming",
    "Target",
    "export_plan",
    "parse_renaming",
    "units_for",
]


class Target(NamedTuple):
    """A framework, and what of a plan it can be told."""

    title: str
    versions: tuple[str, ...]
    """The first is what is written unless another is asked for."""
    schedules: str
    stages: str
    """Stages of a rank."""
    recompute: str
    of_units: Callable[[Plan, tuple[UnitStage, ...], str], Exported] | None = None
    """The exporter to a framework with models of its own."""
    takes_any_unit: bool = False
    """Whether a layer may have any name, for the user's model is a list."""
    of_layers: Callable[[Plan, str], Exported] | None = None
    """The exporter where the plan's own layer names count."""


_TORCH = "torch's, or a CSV"
_WHOLE = f"{_TORCH}; whole backwards"

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "torch": Target(
            "torch.distributed.pipelining", torch_pipelining.VERSIONS, _TORCH, "any",
            "any modules, whole or but for products",
            of_layers=torch_pipelining.export_to_torch,
        ),
        "torchtitan": Target(
            "torchtitan", torchtitan.VERSIONS, _WHOLE, "any, or a V of 2",
            "any layers (0.2.2: all or none)", torchtitan.export_to_torchtitan,
        ),
        "megatron": Target(
            "Megatron-Core", megatron.VERSIONS, "1f1b, interleaved-1f1b", "any",
            "the first layers of each stage", megatron.export_to_megatron,
        ),
        "deepspeed": Target(
            "DeepSpeed", deepspeed.VERSIONS, "1f1b", "1", "any layers",
            deepspeed.export_to_deepspeed, takes_any_unit=True,
        ),
        "automodel": Target(
            "NeMo AutoModel", automodel.VERSIONS, _WHOLE, "any, or a V of 2",
            "all or none", automodel.export_to_automodel,
        ),
        "primus": Target(
            "AMD Primus", primus.VERSIONS, "1f1b, interleaved-1f1b, zb-h1, zbv", "any, or a V of 2",
            "any layers", primus.export_to_primus,
        ),
        "vllm": Target(
            "vLLM (serving)", serving.VLLM_VERSIONS, "-", "1", "-", serving.export_to_vllm
        ),
        "device-map": Target(
            "Hugging Face Accelerate (inference)", serving.DEVICE_MAP_VERSIONS, "-", "1", "-",
            of_layers=serving.export_to_device_map,
        ),
    }
)  # fmt: skip
"""The frameworks that a plan can be exported to. None can be told which layers to offload."""


def export_plan(
    plan: Plan, target: str, *, version: str | None = None, renamings: Sequence[Renaming] = ()
) -> Exported:
    """The files that carry `plan` out in the framework `target`, and notes of what they cannot say.

    `renamings` say which layers of the plan are which units of the framework's model, before the
    rules that know the usual names do.

    Raises ExportRefused, with the nearest plan that would do, where the framework cannot express
    the plan, and UsageError on an unknown target or version.
    """
    if target not in TARGETS:
        raise UsageError(f"cannot export to '{target}'; known: {', '.join(TARGETS)}")
    asked = TARGETS[target]
    written = version or asked.versions[0]
    if written not in asked.versions:
        raise UsageError(
            f"cannot export to {target} {written}; known versions: {', '.join(asked.versions)}"
        )
    if asked.of_units is not None:
        return asked.of_units(plan, units_for(plan, target, renamings), written)
    assert asked.of_layers is not None
    return asked.of_layers(plan, written)


def units_for(plan: Plan, target: str, renamings: Sequence[Renaming]) -> tuple[UnitStage, ...]:
    """The plan's stages in the units that `target` moves whole; raises ExportRefused."""
    return units_of(plan, renamings, keep_unknown=TARGETS[target].takes_any_unit)
