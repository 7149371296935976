"""The check that a framework builds the plan from an export, layer by layer.

Each reader imports its framework when called, and sees only the export, never the plan.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from autopart.errors import ExportRefused, UsageError
from autopart.exporters.exported import Exported
from autopart.exporters.model_units import Renaming, UnitStage
from autopart.exporters.pipeline_shape import Shape, orders_of_one_replica, shape_of
from autopart.exporters.readback import accelerate, automodel, deepspeed, megatron, torchtitan
from autopart.exporters.readback.rebuilt import Rebuilt, installed
from autopart.exporters.targets import export_plan, units_for
from autopart.records.check import Check
from autopart.records.files import write_file
from autopart.records.plan import Plan
from autopart.records.rank_group import (
    Among,
    Group,
    MaybeGroup,
    group_name,
    places_among,
    tensor_group,
)
from autopart.schedules.actions import Order, Schedule, format_order
from autopart.stopping.signals import temporary_folder
from autopart.text import counted

__all__ = ["READERS", "Reader", "check_export"]


class Reader(NamedTuple):
    """A framework that can read its exports back."""

    package: str
    """The package's name in the registry."""
    rebuilds: Mapping[str, Callable[[Path, Shape], Rebuilt]]
    """The function for each exported version; it reads the files in a folder."""
    has_stages: bool = True
    """Whether it cuts a model into stages; else each process has the whole model."""


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "torchtitan": Reader(
            "torchtitan", {"0.3.0": torchtitan.rebuild, "0.2.2": torchtitan.rebuild_from_toml}
        ),
        "megatron": Reader(
            "megatron-core", {"0.16.1": megatron.rebuild, "0.12": megatron.rebuild_without_layout}
        ),
        "deepspeed": Reader("deepspeed", {"0.19.8": deepspeed.rebuild}),
        "automodel": Reader("nemo-automodel", {"0.7.0": automodel.rebuild}),
        "accelerate": Reader("accelerate", {"1.15.0": accelerate.rebuild}, has_stages=False),
    }
)


def check_export(
    plan: Plan, target: str, renamings: Sequence[Renaming] = (), classes: Sequence[str] = ()
) -> tuple[Check, ...]:
    """Export for the installed version, let the framework read the files, and compare.

    `renamings` and `classes` are those of the export.

    Raises ExportRefused where the plan cannot be exported. Raises UsageError where the framework
    has no reader, is not installed, or has an unsupported version.
    """
    if target not in READERS:
        raise UsageError(
            f"exports to '{target}' have no reader; targets with one are {', '.join(READERS)}"
        )
    # Step 1: export for the installed version. A plan that all versions refuse needs no installed package.
    _refuse_in_all_versions(plan, target, renamings)
    framework, version = installed(READERS[target].package, tuple(READERS[target].rebuilds))
    exported = export_plan(plan, target, version=version, renamings=renamings, classes=classes)
    # Step 2: let the framework read the files. It gets the pipeline's shape, never the plan.
    shape = shape_of(plan, target)
    with temporary_folder("autopart-readback-") as folder:
        _write(exported, folder)
        rebuilt = READERS[target].rebuilds[version](folder, shape)
    # Step 3: compare its pipeline with the plan.
    stages = units_for(plan, target, renamings)
    if READERS[target].has_stages:
        compared = (
            _layers(stages, rebuilt),
            _recompute(stages, rebuilt),
            _orders(orders_of_one_replica(plan, shape, target), rebuilt),
        )
    else:
        compared = _whole_model(stages, rebuilt, classes)
    checks = (
        Check("framework", True, framework),
        *compared,
        *_tensor_groups(shape, rebuilt),
        *_sharded_state(plan.group, shape, rebuilt),
        *_process_groups(plan.group, shape, rebuilt),
    )
    # Where degrees differ, their own checks have said so.
    return (
        checks if not all(check.passed for check in checks) else checks + _processes(shape, rebuilt)
    )


def _refuse_in_all_versions(plan: Plan, target: str, renamings: Sequence[Renaming]) -> None:
    """Raise ExportRefused, as the newest version does, where each version refuses the plan."""
    refusals: list[ExportRefused] = []
    for version in READERS[target].rebuilds:
        try:
            export_plan(plan, target, version=version, renamings=renamings)
        except ExportRefused as refused:
            refusals.append(refused)
    if len(refusals) == len(READERS[target].rebuilds):
        raise refusals[0]


def _write(exported: Exported, folder: Path) -> None:
    for name, text in exported.files.items():
        write_file(folder / name, text.encode())


def _layers(stages: Sequence[UnitStage], rebuilt: Rebuilt) -> Check:
    wanted = [stage.units for stage in stages]
    for index, (units, built) in enumerate(zip(wanted, rebuilt.units, strict=False)):
        if units != built:
            return Check(
                "layers", False, f"stage {index} has {_listed(built)}, planned {_listed(units)}"
            )
    if len(wanted) != len(rebuilt.units):
        return Check(
            "layers", False, f"{counted(len(rebuilt.units), 'stage')}, planned {len(wanted)}"
        )
    count = sum(map(len, wanted))
    return Check(
        "layers",
        True,
        f"{counted(count, 'unit')} in {counted(len(wanted), 'stage')}, each as planned",
    )


def _recompute(stages: Sequence[UnitStage], rebuilt: Rebuilt) -> Check:
    whole = frozenset(unit for stage in stages for unit in stage.recompute)
    partly = frozenset(unit for stage in stages for unit in stage.selective)
    wrong = (whole ^ rebuilt.recompute) | (partly ^ rebuilt.selective)
    if wrong:
        return Check("recompute", False, f"differs for {', '.join(sorted(wrong))}")
    added = f" and parts of {counted(len(partly), 'unit')}" if partly else ""
    return Check("recompute", True, f"{counted(len(whole), 'unit')}{added}, as planned")


def _orders(wanted: Schedule, rebuilt: Rebuilt) -> Check:
    for rank, (order, theirs) in enumerate(zip(wanted, rebuilt.orders, strict=True)):
        if order != theirs:
            return Check(
                "orders",
                False,
                f"rank {rank} of a replica runs {_begin(theirs)} …, planned {_begin(order)} …",
            )
    return Check(
        "orders", True, f"{counted(sum(map(len, wanted)), 'action')} per replica, as planned"
    )


def _begin(order: Order) -> str:
    """The first words of an order; a pair is one."""
    return " ".join(format_order(order).split()[:6])


def _whole_model(
    stages: Sequence[UnitStage], rebuilt: Rebuilt, classes: Sequence[str]
) -> tuple[Check, Check]:
    """The checks of the layers that are wrapped, and recomputed, in a model without stages."""
    told = ", ".join(rebuilt.wrapped) or "those that the model says"
    same = rebuilt.wrapped == tuple(classes)
    asked = ", ".join(classes) or "those that the model says"
    wrapped = f"wraps {told}" + (", as planned" if same else f"; planned {asked}")
    wanted, built = any(stage.recompute for stage in stages), bool(rebuilt.recompute)
    words = {True: "all wrapped layers", False: "none"}
    recompute = words[built] + (", as planned" if wanted == built else f"; planned {words[wanted]}")
    return Check("layers", same, wrapped), Check("recompute", wanted == built, recompute)


def _processes(shape: Shape, rebuilt: Rebuilt) -> tuple[Check, ...]:
    """The failed check of the number of processes; none where it is the plan's, or is not told."""
    if rebuilt.num_processes in (None, shape.num_gpus):
        return ()
    told = (
        f"{counted(rebuilt.num_processes or 0, 'process', 'processes')}, planned {shape.num_gpus}"
    )
    return (Check("processes", False, told),)


def _tensor_groups(shape: Shape, rebuilt: Rebuilt) -> list[Check]:
    """The check of the tensor groups; none where neither side has any."""
    wanted = (shape.tensor_degree, shape.sequence_parallel)
    built = (rebuilt.tensor_degree, rebuilt.sequence_parallel)
    if wanted == built == (1, False):
        return []
    names = [
        group_name(tensor_group(degree, sequence_parallel=split))
        for degree, split in (built, wanted)
    ]
    if wanted != built:
        return [Check("tensor groups", False, f"{names[0]}, planned {names[1]}")]
    return [Check("tensor groups", True, f"{names[1]}, as planned")]


def _sharded_state(group: MaybeGroup, shape: Shape, rebuilt: Rebuilt) -> list[Check]:
    """The check of groups that share state; none where neither side has any."""
    keeps_weights = not (isinstance(group, Group) and group.shard == "zero3")
    wanted = (shape.shard_degree, shape.num_replicas, keeps_weights)
    built = (rebuilt.shard_degree, rebuilt.num_replicas, rebuilt.keeps_weights)
    if shape.shard_degree == rebuilt.shard_degree == 1:
        return []
    told = [
        f"{counted(replicas, 'replica')} of {counted(degree, 'process', 'processes')} that share state, weights "
        + ("gathered through the step" if keeps else "gathered for each microbatch")
        for degree, replicas, keeps in (built, wanted)
    ]
    if wanted != built:
        return [Check("sharded state", False, f"{told[0]}; planned {told[1]}")]
    return [Check("sharded state", True, f"{told[1]}, as planned")]


_GROUPS: dict[Among, str] = {"context": "context groups", "expert": "expert groups"}
"""The names of the checks."""


def _process_groups(group: MaybeGroup, shape: Shape, rebuilt: Rebuilt) -> list[Check]:
    """The checks of context and expert groups; none where neither side has any."""
    kinds: dict[Among, tuple[tuple[int, ...], ...]] = {
        "context": rebuilt.context_groups,
        "expert": rebuilt.expert_groups,
    }
    checks: list[Check] = []
    for kind, built in kinds.items():
        wanted, name = _groups_in_plan(group, kind, shape), _GROUPS[kind]
        if wanted == tuple(sorted(built)) == ():
            continue
        if wanted != tuple(sorted(built)):
            told = f"{_first_group(built)}, planned {_first_group(wanted)}"
            checks.append(Check(name, False, told))
            continue
        told = f"{counted(len(wanted), 'group')} of {counted(len(wanted[0]), 'GPU')}, as planned"
        checks.append(Check(name, True, told))
    return checks


def _groups_in_plan(group: MaybeGroup, kind: Among, shape: Shape) -> tuple[tuple[int, ...], ...]:
    """The plan's groups of one kind, with GPUs numbered rank group after rank group; empty for a degree of 1."""
    if not isinstance(group, Group):
        return ()
    if kind == "expert" and group.expert > 1:
        # Megatron makes expert groups of consecutive GPUs, as an export's note says.
        group = msgspec.structs.replace(group, context=1)
    first = places_among(group, kind)
    if len(first) == 1:
        return ()
    # A place and the first set's places differ in this degree alone. So each set is the first one, moved.
    size, covers = shape.gpus_per_rank, first.step * len(first)
    starts = [at for at in range(size) if at % covers < first.step]
    return tuple(
        tuple(base + start + place for place in first)
        for base in range(0, shape.num_gpus, size)
        for start in starts
    )


def _first_group(groups: Sequence[Sequence[int]]) -> str:
    """The first group and their number, in words."""
    if not groups:
        return "no groups"
    return f"{counted(len(groups), 'group')}, the first of GPUs {', '.join(map(str, groups[0]))}"


def _listed(units: Sequence[str]) -> str:
    return ", ".join(units) or "nothing"
