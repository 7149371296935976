"""Stages under another planner's objective, on the terminal."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from autopart.foreign import ForeignAnswer, ForeignStage
from autopart.report.columns import add_number, add_text, new_table
from autopart.report.names import layers_label
from autopart.units import format_share


def foreign_report(answer: ForeignAnswer) -> RenderableType:
    """One row a stage, then the objective, its bound and what that rests on."""
    table = new_table(
        f"{len(answer.stages)} stages, as {answer.convention} counts: {Path(answer.file).name}"
    )
    add_number(table, "stage")
    add_text(table, "nodes")
    add_text(table, "devices")
    for place, stage in enumerate(answer.stages):
        names = [str(node) for node in stage.nodes]
        table.add_row(str(place), layers_label(tuple(names)), _devices(stage))
    gap = "unknown" if answer.gap is None else format_share(answer.gap)
    lines = [
        f"objective {answer.objective:.9g}, lower bound {answer.lower_bound:.9g}, gap {gap} "
        f"({answer.unit})",
        f"the bound rests on: {answer.proof}",
        "no plan is made of it: docs/objectives.md says why",
    ]
    return Group(table, *map(Text, lines))


def _devices(stage: ForeignStage) -> str:
    """`2 replicas x 4 devices, 3 nodes recompute`."""
    if stage.kind == "cpu":
        return "a CPU"
    said = f"{stage.replicas} replica{'s' if stage.replicas > 1 else ''}"
    if stage.outer_replicas is not None:
        said += f" ({stage.inner_replicas} in each of {stage.outer_replicas} node{'s' if stage.outer_replicas > 1 else ''})"
    if stage.tensor_parallel is not None:
        said += f" x {stage.tensor_parallel} devices"
    if stage.recompute:
        said += f", {len(stage.recompute)} nodes recompute"
    return said
