"""Stages under another planner's objective, on the terminal."""

from pathlib import Path

from rich.console import Group, RenderableType

from autopart.peers.answer import PeerAnswer, PeerStage
from autopart.report.columns import add_number, add_text, new_table, plain
from autopart.report.labels import layers_label
from autopart.text import counted
from autopart.units import format_gap


def peer_report(answer: PeerAnswer) -> RenderableType:
    """One row for each stage; then lines for the objective, its lower bound and its proof."""
    table = new_table(
        f"{counted(len(answer.stages), 'stage')}, as {answer.convention} counts: {Path(answer.file).name}"
    )
    add_number(table, "stage")
    add_text(table, "nodes")
    add_text(table, "devices")
    for place, stage in enumerate(answer.stages):
        names = [str(node) for node in stage.nodes]
        table.add_row(str(place), layers_label(tuple(names)), _devices(stage))
    lines = [
        f"objective {answer.objective:.9g}, lower bound {answer.lower_bound:.9g}, gap {format_gap(answer.gap)} "
        f"({answer.unit})",
        f"the bound rests on: {answer.proof}",
        "this answer is not a plan: docs/objectives.md says why",
    ]
    return Group(table, *map(plain, lines))


def _devices(stage: PeerStage) -> str:
    """`2 replicas x 4 devices, 3 nodes recompute`."""
    if stage.kind == "cpu":
        return "a CPU"
    said = counted(stage.replicas, "replica")
    if stage.outer_replicas is not None:
        said += f" ({stage.inner_replicas} in each of {counted(stage.outer_replicas, 'node')})"
    if stage.tensor_parallel is not None:
        said += f" x {counted(stage.tensor_parallel, 'device')}"
    if stage.recompute:
        said += f", {counted(len(stage.recompute), 'node recomputes', 'nodes recompute')}"
    return said
