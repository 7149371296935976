"""The export targets. Importing them imports no framework."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from autopart.errors import ExportRefused, UsageError
from autopart.exporters import (
    accelerate,
    automodel,
    deepspeed,
    megatron,
    primus,
    serving,
    torchtitan,
)
from autopart.exporters.exported import Exported
from autopart.exporters.layer_order import check_layer_order
from autopart.exporters.model_units import Renaming, UnitStage, units_of
from autopart.exporters.sharded_state import Taken, refuse_other_sums, refuse_sharded_state
from autopart.exporters.torch import module as torch_module
from autopart.records.frameworks import EXECUTOR, FRAMEWORKS, Framework
from autopart.records.plan import Plan
from autopart.records.plan_degrees import degrees_name, has_several_degrees
from autopart.records.rank_group import (
    context_degree,
    expert_degree,
    group_name,
    group_size,
    has_ring,
)
from autopart.records.training import DEFAULT_SYNC
from autopart.units import format_time


class Target(NamedTuple):
    """A framework, and the plan features that its export supports."""

    framework: Framework
    versions: tuple[str, ...]
    """Supported versions; the first is the default."""
    schedules: str
    stages: str
    """Supported stages per rank."""
    recompute: str
    of_units: Callable[[Plan, tuple[UnitStage, ...], str], Exported] | None = None
    """The exporter for frameworks with their own models; None for others."""
    takes_any_unit: bool = False
    """Whether layers may have any name, because the user's model is a list."""
    of_layers: Callable[[Plan, str], Exported] | None = None
    """The exporter that uses the plan's own layer names; None for others."""
    of_classes: Callable[[Plan, tuple[UnitStage, ...], str, Sequence[str]], Exported] | None = None
    """The exporter that also names the classes of layers; None for others."""
    no_tensor_groups: str = ""
    """The reason why a rank cannot be a tensor group; empty where it can."""
    no_sharded_state: str = ""
    """The reason why the processes of a rank cannot share its state; empty where they can."""
    sharded_state: Taken = MappingProxyType({})
    """The kinds of sharded state that they can have."""


_TORCH = "torch's, or a CSV"
_WHOLE = f"{_TORCH}; whole backwards"
_TAKERS = "--to megatron and --to torchtitan take this plan"

_MEGATRON_FSDP = (
    "shares gradients through Megatron-FSDP alone, which its documentation joins with tensor, context and expert "
    "groups and with no pipeline"
)
_SERVES = "trains nothing"

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "torch": Target(
            FRAMEWORKS["torch"], torch_module.VERSIONS, _TORCH, "any",
            "any modules, whole or except products",
            of_layers=torch_module.export_to_torch,
            no_tensor_groups="the exported modules shard no weights; " + _TAKERS,
            no_sharded_state="leaves the sharding of stages to its user",
        ),
        "torchtitan": Target(
            FRAMEWORKS["torchtitan"], torchtitan.VERSIONS, _WHOLE, "any, or a V of 2",
            "any layers, whole or except products (0.2.2: every n-th)", torchtitan.export_to_torchtitan,
            sharded_state={"zero2": ("step",), "zero3": ("step",)},
        ),
        "megatron": Target(
            FRAMEWORKS["megatron"], megatron.VERSIONS, "1f1b, interleaved-1f1b", "any",
            "the first layers of each stage, or parts of all layers", megatron.export_to_megatron,
            no_sharded_state=_MEGATRON_FSDP,
        ),
        "deepspeed": Target(
            FRAMEWORKS["deepspeed"], deepspeed.VERSIONS, "1f1b", "1",
            "any layers, whole or except products", deepspeed.export_to_deepspeed, takes_any_unit=True,
            no_tensor_groups=deepspeed.NO_TENSOR_GROUPS + "; " + _TAKERS,
            no_sharded_state="refuses ZeRO-2 and ZeRO-3 in its pipelines",
        ),
        "automodel": Target(
            FRAMEWORKS["automodel"], automodel.VERSIONS, _WHOLE, "any, or a V of 2",
            "all or none", automodel.export_to_automodel,
            sharded_state={"zero2": ("step",), "zero3": ("microbatch",)},
        ),
        "accelerate": Target(
            FRAMEWORKS["accelerate"], accelerate.VERSIONS, "-", "1 stage", "all layers or none", takes_any_unit=True,
            of_classes=accelerate.export_to_accelerate,
            sharded_state={"zero2": ("step", "microbatch"), "zero3": ("step", "microbatch")},
        ),
        "primus": Target(
            FRAMEWORKS["primus"], primus.VERSIONS, "1f1b, interleaved-1f1b, zb-h1, zbv", "any, or a V of 2",
            "any layers, or parts of all layers", primus.export_to_primus, no_sharded_state=_MEGATRON_FSDP,
        ),
        "vllm": Target(
            FRAMEWORKS["vllm"], serving.VLLM_VERSIONS, "-", "1", "-", of_units=serving.export_to_vllm,
            no_sharded_state=_SERVES,
        ),
        "device-map": Target(
            FRAMEWORKS["device-map"], serving.DEVICE_MAP_VERSIONS, "-", "1", "-",
            of_layers=serving.export_to_device_map, no_tensor_groups=serving.NO_TENSOR_GROUPS,
            no_sharded_state=_SERVES,
        ),
    }
)  # fmt: skip
"""The frameworks that take a plan. None accepts offloaded layers."""


def export_plan(
    plan: Plan,
    target: str,
    *,
    version: str | None = None,
    renamings: Sequence[Renaming] = (),
    classes: Sequence[str] = (),
) -> Exported:
    """Export a plan: the files that carry it out in a framework, and notes.

    `renamings` map layers to the framework's units, before the built-in rules for usual names. `classes` are those of
    the layers, for a framework that wraps them by their classes.

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
    if has_several_degrees(plan):
        raise ExportRefused(
            f"the plan has {degrees_name(plan)}, and {target} has one degree for all stages; the nearest "
            "plan has --tensor auto"
        )
    _refuse_degrees(plan, target, asked.framework)
    if asked.no_sharded_state:
        refuse_sharded_state(plan, asked.framework.title, asked.no_sharded_state)
    else:
        refuse_other_sums(plan, asked.framework.title, asked.sharded_state)
    if asked.no_tensor_groups and group_size(plan.group) > 1:
        raise ExportRefused(
            f"the plan has {group_name(plan.group)}, and {asked.no_tensor_groups}; the nearest "
            "plan has --tensor 1"
        )
    check_layer_order(plan)
    if asked.of_classes is not None:
        exported = asked.of_classes(plan, units_for(plan, target, renamings), written, classes)
    elif asked.of_units is not None:
        exported = asked.of_units(plan, units_for(plan, target, renamings), written)
    else:
        assert asked.of_layers is not None
        exported = asked.of_layers(plan, written)
    notes = (*exported.notes, *_sync_notes(plan, target), *_period_notes(plan, target))
    return exported._replace(notes=notes)


def _refuse_degrees(plan: Plan, target: str, framework: Framework) -> None:
    """Raise ExportRefused for a degree, or an exchange of keys and values, that an export does not have."""
    degrees = {
        "context": (context_degree(plan.group), framework.context),
        "expert": (expert_degree(plan.group), framework.expert),
    }
    for kind, (degree, is_able) in degrees.items():
        if degree > 1 and not is_able:
            raise ExportRefused(
                f"the plan has {group_name(plan.group)}, and an export for {target} has no {kind} degree; the nearest "
                f"plan has --{kind} 1; --to megatron and --to torchtitan take this plan"
            )
    if has_ring(plan.group) and not framework.ring:
        raise ExportRefused(
            f"the plan has {group_name(plan.group)}, and an export for {target} gathers keys and values; the nearest plan "
            "has --context-exchange gather; --to megatron takes this plan"
        )


def _sync_notes(plan: Plan, target: str) -> list[str]:
    """A note where the plan was solved for another gradient sync than the framework's."""
    framework, solved = FRAMEWORKS[target], plan.training.sync
    if solved == framework.sync or not plan.prediction.syncs:
        return []
    whose = f", {EXECUTOR}'s" if solved == DEFAULT_SYNC else ""
    return [
        f"the plan was solved with --sync {solved}{whose}, but {framework.title} syncs gradients as --sync "
        f"{framework.sync} says; solve with --target {target} to predict its step"
    ]


def _period_notes(plan: Plan, target: str) -> list[str]:
    """A note where the plan minimises the period of steps that the framework does not run back to back."""
    if plan.objective != "period":
        return []
    return [
        f"the plan minimises the period of steps back to back, as {EXECUTOR} runs them; {FRAMEWORKS[target].title} "
        f"may wait for all ranks in each step, which then takes {format_time(plan.prediction.step_time)}; solve "
        "with --objective step for it"
    ]


def units_for(plan: Plan, target: str, renamings: Sequence[Renaming]) -> tuple[UnitStage, ...]:
    """The plan's stages in the units that `target` moves whole; raises ExportRefused."""
    return units_of(plan, renamings, keep_unknown=TARGETS[target].takes_any_unit)
