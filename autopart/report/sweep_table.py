"""Memory sizes and the plans that fit: a table, and the document that `--json` prints."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from autopart.memory_sweep import SweepPoint
from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.units import format_share


class SweepPointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan within one memory size; null throughout where nothing fits."""

    memory_bytes: int
    """Of one GPU."""
    step_time: float | None
    gap: float | None
    stages: int | None
    replicas: int | None
    """Of the stage with the most."""
    schedule: str | None
    recomputed: tuple[str, ...] | None
    selective: tuple[str, ...] | None
    """Layers of which only the cheap part is recomputed."""
    offloaded: tuple[str, ...] | None
    bottleneck: int | None
    """The stage that is busiest with a microbatch."""


class SweepSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart solve --memory-sweep --json` prints."""

    profile: str
    layers: int
    points: tuple[SweepPointSummary, ...]
    """The largest memory first."""


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
    """One row a memory size."""
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
        if point.gap is None:
            table.add_row(memory, "-", "", "", "nothing fits", "", "", "")
            continue
        recomputed = [*(point.recomputed or ()), *(point.selective or ())]
        table.add_row(
            memory,
            step,
            format_share(point.gap),
            f"{point.stages} x {point.replicas}",
            point.schedule,
            str(len(recomputed)),
            str(len(point.offloaded or ())),
            str(point.bottleneck),
        )
    return table
