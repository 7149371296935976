"""Why a plan is as it is, on the terminal and as a document."""

import msgspec
from rich.table import Table

from autopart.cost.stage_times import plan_minimised
from autopart.records.plan import Plan
from autopart.records.plan_degrees import rank_sizes
from autopart.report.columns import add_number, add_text, new_table, times
from autopart.report.labels import ranks_label
from autopart.search.explanation import Explanation
from autopart.search.plan_comparison import sample_seconds, training_seconds
from autopart.search.what_if import Scenario, ScenarioAnswer
from autopart.units import format_bytes, format_change, format_gap, format_share, format_time


class PathShare(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of the critical path with one use."""

    use: str
    """`compute`, `send`, `sync`, `update` or `wait`."""
    stage: int | None
    """The stage that computes; null for other uses."""
    seconds: float
    """Its seconds."""


class MoveSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The best move of one layer over a cut."""

    layer: str
    """The layer."""
    stage: int
    """Its new stage."""
    step_time: float
    """Seconds of the step after the move."""
    change: float
    """Seconds from step to step after the move over the plan's own, minus 1; negative where they are fewer."""


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan under other conditions."""

    changes: dict[str, str]
    """What changes, by name; empty where the same question is solved again."""
    step_time: float | None
    """Seconds of its step; null where there is no plan."""
    change: float | None
    """Its seconds per sample over the plan's own, minus 1; negative where it is faster."""
    stages: int | None
    """Its number of stages."""
    reason: str
    """Why there is no plan; empty where there is one."""


class ExplainSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart explain --json` prints."""

    plan: str
    """Plan file."""
    step_time: float
    """Seconds that the simulated step takes."""
    lower_bound: float
    """Proven lower bound for the objective, in seconds."""
    gap: float | None
    """Objective over its lower bound, minus 1; null where the bound is 0."""
    path: tuple[PathShare, ...]
    """The critical path by use and stage, longest first. The seconds add up to the step."""
    idle: dict[str, float]
    """Idle rank-seconds by cause, over all ranks."""
    fullest_rank: int
    """The rank with the highest peak."""
    peak_bytes: int
    """Its peak bytes."""
    limit_bytes: int
    """Memory of one GPU."""
    move: MoveSummary | None
    """The best move of one layer; null where none was tried, or none fits."""
    what_if: tuple[WhatIf, ...]
    """What changes would be worth."""
    left_out: int
    """Changes that the time limit left out."""


def explain_summary(found: Explanation, path: str) -> ExplainSummary:
    """The figures that explain the plan in the file `path`."""
    plan = found.plan
    peaks = plan.prediction.rank_peak_bytes
    fullest = max(range(len(peaks)), key=peaks.__getitem__)
    return ExplainSummary(
        plan=path,
        step_time=plan.prediction.step_time,
        lower_bound=plan.certificate.lower_bound,
        gap=plan.certificate.gap,
        path=_shares(found),
        idle={str(cause): seconds for cause, seconds in found.idle.items()},
        fullest_rank=fullest,
        peak_bytes=peaks[fullest],
        limit_bytes=plan.cluster.memory_bytes,
        move=_move(found),
        what_if=tuple(_what_if(plan, one) for one in found.outcomes),
        left_out=found.left_out,
    )


def _shares(found: Explanation) -> tuple[PathShare, ...]:
    sums: dict[tuple[str, int], float] = {}
    for piece in found.path:
        key = piece.use, piece.stage if piece.use == "compute" else -1
        sums[key] = sums.get(key, 0.0) + piece.end - piece.start
    shares = [
        PathShare(use=use, stage=stage if stage >= 0 else None, seconds=seconds)
        for (use, stage), seconds in sums.items()
    ]
    return tuple(sorted(shares, key=lambda share: -share.seconds))


def _move(found: Explanation) -> MoveSummary | None:
    if found.move is None:
        return None
    after = found.move.plan
    return MoveSummary(
        layer=found.move.layer,
        stage=found.move.stage,
        step_time=after.prediction.step_time,
        change=_relative(training_seconds(after), training_seconds(found.plan)),
    )


def _what_if(plan: Plan, outcome: ScenarioAnswer) -> WhatIf:
    other = outcome.plan
    return WhatIf(
        changes={change.field: change.value for change in outcome.scenario},
        step_time=None if other is None else other.prediction.step_time,
        change=None if other is None else _relative(sample_seconds(other), sample_seconds(plan)),
        stages=None if other is None else len(other.stages),
        reason=outcome.reason,
    )


def _relative(after: float, before: float) -> float:
    return after / before - 1 if before else 0.0


def path_table(found: Explanation) -> Table:
    """One row for each use on the critical path."""
    shares, step = _shares(found), found.plan.prediction.step_time
    unit, cells = times([share.seconds for share in shares])
    table = new_table(f"critical path, {format_time(step)}")
    add_text(table, "spent on")
    add_text(table, "stage")
    add_number(table, unit)
    add_number(table, "share")
    for share, cell in zip(shares, cells, strict=True):
        stage = "" if share.stage is None else str(share.stage)
        table.add_row(share.use, stage, cell, format_share(share.seconds / step if step else 0.0))
    return table


def binding_lines(found: Explanation) -> list[str]:
    """What binds the plan, in sentences."""
    plan = found.plan
    prediction = plan.prediction
    busy = [stage.busy_time for stage in prediction.stages]
    slowest = busy.index(max(busy))
    others = sorted(busy)[-2] if len(busy) > 1 else busy[0]
    lines = [
        f"stage {slowest} on ranks {ranks_label(plan.stages[slowest].ranks)} is busy for "
        f"{format_time(busy[slowest])} per microbatch, the next busiest stage for {format_time(others)}"
    ]
    idle = {cause: seconds for cause, seconds in found.idle.items() if seconds > 0}
    whole = sum(idle.values())
    if whole:
        parts = sorted(idle.items(), key=lambda pair: -pair[1])
        named = ", ".join(f"{cause} {format_share(seconds / whole)}" for cause, seconds in parts)
        lines.append(f"idle time ({format_share(prediction.bubble)} of all rank-seconds): {named}")
    peaks, limit = prediction.rank_peak_bytes, plan.cluster.memory_bytes
    fullest = max(range(len(peaks)), key=peaks.__getitem__)
    lines.append(
        f"rank {fullest} is fullest: {format_bytes(peaks[fullest])} of {format_bytes(limit)}"
    )
    gap = format_gap(plan.certificate.gap)
    lines.append(
        f"the {plan.objective} of {format_time(plan_minimised(plan))} is {gap} above the lower bound of "
        f"{format_time(plan.certificate.lower_bound)}"
    )
    if found.move is not None:
        change = _relative(training_seconds(found.move.plan), training_seconds(plan))
        lines.append(
            f"moving one layer: at best {format_change(change)}, with {found.move.layer} on stage "
            f"{found.move.stage}"
        )
    return lines


def what_if_table(found: Explanation) -> Table:
    """One row for each change: the step after it, and its worth per sample."""
    plan = found.plan
    made = [training_seconds(one.plan) for one in found.outcomes if one.plan is not None]
    unit, cells = times([training_seconds(plan), *made])
    rest = iter(cells[1:])
    table = new_table("what a change would be worth, solved again")
    add_text(table, "change")
    add_number(table, f"{'period' if plan.objective == 'period' else 'step'}\n{unit}")
    add_number(table, "seconds\nper sample")
    add_text(table, "stages x GPUs")
    add_text(table, "")
    table.add_row("none: this plan", cells[0], "", _shape(plan), "")
    for one in found.outcomes:
        if one.plan is None:
            table.add_row(
                scenario_label(one.scenario), "-", "-", "-", one.reason.partition("; ")[0]
            )
            continue
        change = _relative(sample_seconds(one.plan), sample_seconds(plan))
        table.add_row(
            scenario_label(one.scenario), next(rest), format_change(change), _shape(one.plan), ""
        )
    return table


def scenario_label(scenario: Scenario) -> str:
    """`memory=+8GiB, nodes=2x`; the empty scenario is the same question."""
    return (
        ", ".join(f"{change.field}={change.value}" for change in scenario) or "none: solved again"
    )


def _shape(plan: Plan) -> str:
    """Stages, and GPUs in use."""
    degrees = rank_sizes(plan)
    used = sum(degrees[rank] for rank in {rank for stage in plan.stages for rank in stage.ranks})
    return f"{len(plan.stages)} x {used}"
