"""The best plan within each memory size: a table, and the document that `--json` prints."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.search.memory_sweep import SweepPoint
from autopart.units import format_gap


class SweepPointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan within one memory size; null throughout where nothing fits."""

    memory_bytes: int
    """Bytes that each GPU has."""
    step_time: float | None
    """Seconds that the simulated step takes."""
    gap: float | None
    """Objective over its lower bound, minus 1; null also where the bound is 0."""
    stages: int | None
    """How many stages the plan has."""
    replicas: int | None
    """Replicas on the stage that has the most."""
    schedule: str | None
    """The schedule's name."""
    recomputed: tuple[str, ...] | None
    """Layers that are recomputed as a whole."""
    selective: tuple[str, ...] | None
    """Layers whose cheap part is recomputed."""
    offloaded: tuple[str, ...] | None
    """Layers whose stash is offloaded to the host."""
    bottleneck: int | None
    """The stage with the longest busy time per microbatch, counted from 0."""


class SweepSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart solve --memory-sweep --json` prints."""

    profile: str
    """Profile files, with commas between."""
    layers: int
    """How many layers the model has."""
    points: tuple[SweepPointSummary, ...]
    """One entry for each memory size, the largest first."""


def sweep_summary(profile: str, num_layers: int, points: Sequence[SweepPoint]) -> SweepSummary:
    """The sweep as a document."""
    return SweepSummary(profile=profile, layers=num_layers, points=tuple(map(_summary, points)))


def _summary(point: SweepPoint) -> SweepPointSummary:
    plan = point.plan
    if plan is None:
        return SweepPointSummary(
            memory_bytes=point.memory_bytes,
            step_time=None,
            gap=None,
            stages=None,
            replicas=None,
            schedule=None,
            recomputed=None,
            selective=None,
            offloaded=None,
            bottleneck=None,
        )
    busy = [stage.busy_time for stage in plan.prediction.stages]
    return SweepPointSummary(
        memory_bytes=point.memory_bytes,
        step_time=plan.prediction.step_time,
        gap=plan.certificate.gap,
        stages=len(plan.stages),
        replicas=max(len(stage.ranks) for stage in plan.stages),
        schedule=plan.schedule,
        recomputed=tuple(name for stage in plan.stages for name in stage.recompute),
        selective=tuple(name for stage in plan.stages for name in stage.selective),
        offloaded=tuple(name for stage in plan.stages for name in stage.offload),
        bottleneck=busy.index(max(busy)),
    )


def sweep_table(summary: SweepSummary) -> Table:
    """One row for each memory size."""
    points = summary.points
    memory_unit, memories = sizes([point.memory_bytes for point in points])
    time_unit, steps = times([point.step_time or 0.0 for point in points])
    table = new_table("the best plan within a GPU's memory")
    for head in (f"memory\n{memory_unit}", f"step\n{time_unit}", "gap", "stages x\nreplicas"):
        add_number(table, head)
    add_text(table, "schedule")
    add_number(table, f"recomputed\nof {summary.layers}")
    add_number(table, "off-\nloaded")
    add_number(table, "busiest\nstage")
    for point, memory, step in zip(points, memories, steps, strict=True):
        if point.step_time is None:
            table.add_row(memory, "-", "", "", "nothing fits", "", "", "")
            continue
        recomputed = [*(point.recomputed or ()), *(point.selective or ())]
        table.add_row(
            memory,
            step,
            format_gap(point.gap),
            f"{point.stages} x {point.replicas}",
            point.schedule,
            str(len(recomputed)),
            str(len(point.offloaded or ())),
            str(point.bottleneck),
        )
    return table
