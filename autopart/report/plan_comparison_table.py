"""Plans side by side, and profiles layer by layer: on the terminal and as documents."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from autopart.records.layer_graph import Layer
from autopart.records.profile import Profile
from autopart.records.profile_changes import LayerChange, layer_changes, layer_seconds
from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.report.labels import chosen_label
from autopart.report.plan_table import peak_bytes
from autopart.search.plan_comparison import ComparedPlan, training_seconds
from autopart.simulator.idle import CAUSES
from autopart.text import counted
from autopart.units import format_change, format_gap, format_share, format_time


class ComparedSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One of several plans for a model."""

    plan: str
    """Plan file."""
    step_time: float
    """Seconds that the simulated step takes."""
    samples: int
    """Samples per step."""
    slower: float
    """Its seconds per sample over the first plan's, minus 1; negative where it is faster."""
    gap: float | None
    """Objective over its lower bound, minus 1; null where the bound is 0."""
    bubble: float
    """Idle share of all rank-seconds in a step, 0 to 1."""
    idle: dict[str, float]
    """Idle rank-seconds by cause, over all ranks."""
    peak_bytes: int
    """Peak bytes on its fullest rank."""
    schedule: str
    """Its schedule."""
    stages: tuple[tuple[str, ...], ...]
    """For each stage its layers."""
    ranks: tuple[tuple[int, ...], ...]
    """For each stage its ranks."""
    moved: tuple[str, ...] | None
    """Layers on another stage than in the first plan; null where the numbers of stages differ."""
    changed_policies: tuple[str, ...]
    """Layers with another activation policy than in the first plan."""


class CompareSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart compare --json` prints."""

    first_is_best: bool
    """Whether the first plan is at least as fast per sample as each other one."""
    plans: tuple[ComparedSummary, ...]
    """The plans in the order in which they were given."""


class LayerChangeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One layer in two profiles. Null stands for a layer that is not there."""

    layer: str
    """The layer's name."""
    seconds: tuple[float | None, float | None]
    """Forward and backward seconds for one microbatch, before and after."""
    stash_bytes: tuple[int | None, int | None]
    """Stash bytes for one microbatch, before and after."""
    param_bytes: tuple[int | None, int | None]
    """Parameter bytes, before and after."""


class ProfileChangesSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart compare --profiles --json` prints."""

    profiles: tuple[str, str]
    """The two files."""
    first_is_best: bool
    """Whether the first profile's layers take at most as many seconds per sample."""
    layers: tuple[LayerChangeSummary, ...]
    """All layers of both profiles."""


def compare_summary(
    compared: Sequence[ComparedPlan], paths: Sequence[str], *, first_is_best: bool
) -> CompareSummary:
    """The figures of plans in the files `paths`."""
    return CompareSummary(
        first_is_best=first_is_best,
        plans=tuple(_summary(one, path) for one, path in zip(compared, paths, strict=True)),
    )


def _summary(one: ComparedPlan, path: str) -> ComparedSummary:
    plan = one.plan
    return ComparedSummary(
        plan=path,
        step_time=plan.prediction.step_time,
        samples=plan.num_microbatches * plan.microbatch_size,
        slower=one.slower,
        gap=plan.certificate.gap,
        bubble=plan.prediction.bubble,
        idle={str(cause): seconds for cause, seconds in one.idle.items()},
        peak_bytes=peak_bytes(plan),
        schedule=plan.schedule,
        stages=tuple(stage.layers for stage in plan.stages),
        ranks=tuple(stage.ranks for stage in plan.stages),
        moved=one.moved,
        changed_policies=one.changed_policies,
    )


def comparison_of_plans(compared: Sequence[ComparedPlan], paths: Sequence[str]) -> Table:
    """One row for each plan."""
    plans = [one.plan for one in compared]
    unit, cells = times([training_seconds(plan) for plan in plans])
    peak_unit, peaks = sizes([peak_bytes(plan) for plan in plans])
    table = new_table(f"{counted(len(plans), 'plan')} for {plans[0].origin.model}")
    add_text(table, "plan")
    add_number(table, f"step\n{unit}")
    add_number(table, "slower\nby")
    add_number(table, "gap")
    add_number(table, "bubble")
    add_number(table, f"peak\n{peak_unit}")
    add_text(table, "stages, schedule")
    for one, path, cell, peak in zip(compared, paths, cells, peaks, strict=True):
        plan = one.plan
        table.add_row(
            path,
            cell,
            "" if plan is plans[0] else format_change(one.slower),
            format_gap(plan.certificate.gap),
            format_share(plan.prediction.bubble),
            peak,
            f"{len(plan.stages)} x {len(plan.stages[0].ranks)} {plan.schedule}",
        )
    return table


def idle_table(compared: Sequence[ComparedPlan], paths: Sequence[str]) -> Table:
    """One row for each cause of idle time that some plan has, as a share of its rank-seconds."""
    table = new_table("idle time by cause, share of all rank-seconds")
    add_text(table, "cause")
    for path in paths:
        add_number(table, path)
    for cause in CAUSES:
        # A plan without sharded state has no entry for that cause.
        shares = [
            one.idle.get(cause, 0.0) / whole if (whole := _rank_seconds(one)) else 0.0
            for one in compared
        ]
        if any(shares):
            table.add_row(cause, *map(format_share, shares))
    return table


def _rank_seconds(one: ComparedPlan) -> float:
    ranks = {rank for stage in one.plan.stages for rank in stage.ranks}
    return len(ranks) * one.plan.prediction.step_time


def difference_lines(compared: Sequence[ComparedPlan], paths: Sequence[str]) -> list[str]:
    """What each plan has otherwise than the first one, in sentences."""
    lines: list[str] = []
    first = compared[0].plan
    for one, path in zip(compared[1:], paths[1:], strict=True):
        told: list[str] = []
        if one.moved is None:
            told.append(f"{counted(len(one.plan.stages), 'stage')} instead of {len(first.stages)}")
        elif one.moved:
            told.append(
                f"{counted(len(one.moved), 'layer')} on another stage: {chosen_label(one.moved)}"
            )
        if [stage.ranks for stage in one.plan.stages] != [stage.ranks for stage in first.stages]:
            told.append("other ranks")
        if one.changed_policies:
            told.append(f"another policy for {chosen_label(one.changed_policies)}")
        if one.plan.cluster != first.cluster:
            told.append("another cluster")
        batch = one.plan.num_microbatches * one.plan.microbatch_size
        if batch != first.num_microbatches * first.microbatch_size:
            told.append(f"a step of {counted(batch, 'sample')}")
        lines.append(f"{path}: {', '.join(told) or 'the same stages, ranks and policies'}")
    best = min(range(len(compared)), key=lambda place: compared[place].slower)
    if best and compared[best].slower < 0:
        lines.append(
            f"{paths[best]} is the fastest, by {format_gap(-compared[best].slower)} per sample"
        )
    else:
        lines.append(f"{paths[0]} is at least as fast as the others")
    return lines


def profile_changes_summary(
    before: Profile, after: Profile, paths: tuple[str, str], *, first_is_best: bool
) -> ProfileChangesSummary:
    """Two profiles in the files `paths`, layer by layer."""
    return ProfileChangesSummary(
        profiles=paths,
        first_is_best=first_is_best,
        layers=tuple(_change(one) for one in layer_changes(before, after)),
    )


def _change(one: LayerChange) -> LayerChangeSummary:
    pair = one.before, one.after

    def both(field: str) -> tuple[int | None, int | None]:
        first, second = (None if layer is None else int(getattr(layer, field)) for layer in pair)
        return first, second

    first, second = (None if layer is None else layer_seconds(layer) for layer in pair)
    return LayerChangeSummary(
        layer=one.name,
        seconds=(first, second),
        stash_bytes=both("stash_bytes"),
        param_bytes=both("param_bytes"),
    )


def profile_changes_table(before: Profile, after: Profile) -> Table:
    """One row for each layer that differs, and one for the sum of all."""
    changes = layer_changes(before, after)
    different = [one for one in changes if _differs(one)]
    table = new_table(
        f"{before.source.model} and {after.source.model}: "
        f"{counted(len(different), 'layer')} of {len(changes)} changed"
    )
    unit, cells = times([layer_seconds(layer) for one in different for layer in one[1:]])
    stash_unit, stashes = sizes([_bytes(layer) for one in different for layer in one[1:]])
    add_text(table, "layer")
    add_number(table, f"before\n{unit}")
    add_number(table, f"after\n{unit}")
    add_number(table, "change")
    add_number(table, f"stash\nbefore {stash_unit}")
    add_number(table, f"after\n{stash_unit}")
    for place, one in enumerate(different):
        table.add_row(
            one.name,
            *(cells[2 * place + side] if one[1 + side] is not None else "-" for side in (0, 1)),
            _relative(one.before, one.after),
            *(stashes[2 * place + side] if one[1 + side] is not None else "-" for side in (0, 1)),
        )
    return table


def sum_line(before: Profile, after: Profile) -> str:
    """The seconds of all layers, before and after, for one sample."""
    sums = [
        sum(map(layer_seconds, one.graph.layers)) / one.microbatch_size for one in (before, after)
    ]
    change = format_change(sums[1] / sums[0] - 1) if sums[0] else "-"
    return f"all layers per sample: {format_time(sums[0])} before, {format_time(sums[1])} after ({change})"


def _differs(one: LayerChange) -> bool:
    return (
        one.before is None
        or one.after is None
        or any(
            getattr(one.before, field) != getattr(one.after, field)
            for field in (
                "forward_time", "input_grad_time", "weight_grad_time", "stash_bytes", "param_bytes"
            )
        )
    )  # fmt: skip


def _bytes(layer: Layer | None) -> int:
    return 0 if layer is None else layer.stash_bytes


def _relative(before: Layer | None, after: Layer | None) -> str:
    if before is None:
        return "new"
    if after is None:
        return "gone"
    old = layer_seconds(before)
    return format_change(layer_seconds(after) / old - 1) if old else "-"
