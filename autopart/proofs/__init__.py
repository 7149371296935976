"""An export, read by the framework that is installed: which layers it would build on which rank, and in
which order it would run them, held against the plan layer by layer.

Every file here imports its framework when it is asked to, and nothing of the plan but the export.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from autopart.certificate import Check
from autopart.errors import UsageError
from autopart.exporters import Exported, Renaming, export_plan, units_for
from autopart.exporters.shape import Shape, orders_of_one_replica, shape_of
from autopart.exporters.units import UnitStage
from autopart.files import write_file
from autopart.plan import Plan
from autopart.proofs import automodel, deepspeed, megatron, torchtitan
from autopart.proofs.rebuilt import Rebuilt, installed
from autopart.schedule import Schedule, format_order

__all__ = ["PROOFS", "Proof", "check_export"]


class Proof(NamedTuple):
    """A framework whose package can say what it makes of an export."""

    package: str
    readers: Mapping[str, Callable[[Path, Shape], Rebuilt]]
    """By the version that the export is written for."""


PROOFS: Mapping[str, Proof] = MappingProxyType(
    {
        "torchtitan": Proof(
            "torchtitan", {"0.3.0": torchtitan.rebuild, "0.2.2": torchtitan.rebuild_from_toml}
        ),
        "megatron": Proof(
            "megatron-core", {"0.16.1": megatron.rebuild, "0.12": megatron.rebuild_without_layout}
        ),
        "deepspeed": Proof("deepspeed", {"0.19.8": deepspeed.rebuild}),
        "automodel": Proof("nemo-automodel", {"0.7.0": automodel.rebuild}),
    }
)


def check_export(plan: Plan, target: str, renamings: Sequence[Renaming] = ()) -> tuple[Check, ...]:
    """Export the plan for the version that is installed, have the framework read it, and compare.

    Raises ExportRefused where the plan cannot be exported, and UsageError where the framework has no
    proof, is not installed, or is of another version than exports are written for.
    """
    if target not in PROOFS:
        raise UsageError(f"exports to '{target}' are not rebuilt; those to {', '.join(PROOFS)} are")
    export_plan(plan, target, renamings=renamings)  # a refusal needs no package
    framework, version = installed(PROOFS[target].package, tuple(PROOFS[target].readers))
    exported = export_plan(plan, target, version=version, renamings=renamings)
    shape = shape_of(plan, target)
    with tempfile.TemporaryDirectory() as folder:
        _write(exported, Path(folder))
        rebuilt = PROOFS[target].readers[version](Path(folder), shape)
    stages = units_for(plan, target, renamings)
    return (
        Check("framework", True, framework),
        _layers(stages, rebuilt),
        _recompute(stages, rebuilt),
        _orders(orders_of_one_replica(plan, shape, target), rebuilt),
    )


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
        return Check("layers", False, f"{len(rebuilt.units)} stages, planned {len(wanted)}")
    count = sum(map(len, wanted))
    return Check("layers", True, f"{count} units in {len(wanted)} stages, each as planned")


def _recompute(stages: Sequence[UnitStage], rebuilt: Rebuilt) -> Check:
    wanted = frozenset(unit for stage in stages for unit in stage.recompute)
    if wanted != rebuilt.recompute:
        wrong = sorted(wanted ^ rebuilt.recompute)
        return Check("recompute", False, f"differs for {', '.join(wrong)}")
    return Check("recompute", True, f"{len(wanted)} units, as planned")


def _orders(wanted: Schedule, rebuilt: Rebuilt) -> Check:
    for rank, (order, theirs) in enumerate(zip(wanted, rebuilt.orders, strict=True)):
        if order != theirs:
            return Check(
                "orders",
                False,
                f"rank {rank} of a replica runs {format_order(theirs[:6])} …, planned "
                f"{format_order(order[:6])} …",
            )
    return Check("orders", True, f"{sum(map(len, wanted))} actions of a replica, as planned")


def _listed(units: Sequence[str]) -> str:
    return ", ".join(units) or "nothing"
