"""A user's own layout beside the best plans, on the terminal and as a document."""

import msgspec
from rich.table import Table

from autopart.cost.stage_times import plan_minimised
from autopart.records.plan import Plan
from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.report.plan_summary import PlanSummary, plan_summary
from autopart.report.plan_table import peak_bytes
from autopart.search.given_stages import GivenPlan
from autopart.text import counted
from autopart.units import format_gap, format_share


class OtherPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan beside a given one."""

    step_time: float
    """Seconds that its simulated step takes."""
    slower: float
    """The given plan's objective over this one's, minus 1; negative where this plan is slower."""
    stages: int
    """Its number of stages."""
    replicas: int
    """Replicas of its first stage."""
    schedule: str
    """Its schedule."""
    moved: tuple[str, ...] | None = None
    """Layers that it has on another stage; null where the number of stages may differ."""


class ImportPlanSummary(PlanSummary, frozen=True, kw_only=True):
    """The document that `autopart import-plan --json` prints."""

    same_shape: OtherPlan
    """The best plan with as many stages and replicas."""
    best: OtherPlan
    """The best plan found."""


def given_summary(given: GivenPlan, path: str) -> ImportPlanSummary:
    """The figures of a given layout, whose plan is in the file `path`, and of the best plans."""
    figures = msgspec.structs.asdict(plan_summary(given.plan, path))
    return ImportPlanSummary(
        same_shape=_other(given.plan, given.same_shape, given.moved),
        best=_other(given.plan, given.best, None),
        **figures,
    )


def _other(plan: Plan, other: Plan, moved: tuple[str, ...] | None) -> OtherPlan:
    return OtherPlan(
        step_time=other.prediction.step_time,
        slower=plan_minimised(plan) / plan_minimised(other) - 1 if plan_minimised(other) else 0.0,
        stages=len(other.stages),
        replicas=len(other.stages[0].ranks),
        schedule=other.schedule,
        moved=moved,
    )


def given_table(given: GivenPlan) -> Table:
    """One row for the layout, the best plan of its shape, and the best plan."""
    rows = {
        "your layout": given.plan, "best of its shape": given.same_shape, "best plan": given.best
    }  # fmt: skip
    values = [plan_minimised(plan) for plan in rows.values()]
    unit, cells = times(values)
    peaks_unit, peaks = sizes([peak_bytes(plan) for plan in rows.values()])
    table = new_table("your layout beside the best plans")
    add_text(table, "plan")
    add_number(table, f"{given.plan.objective} {unit}")
    add_number(table, "above\nbound")
    add_text(table, "stages")
    add_text(table, "schedule")
    add_number(table, "bubble")
    add_number(table, f"peak {peaks_unit}")
    bound = given.plan.certificate.lower_bound
    for (name, plan), value, cell, peak in zip(rows.items(), values, cells, peaks, strict=True):
        table.add_row(
            name,
            cell,
            format_gap(max(0.0, value / bound - 1) if bound else None),
            f"{len(plan.stages)} x {len(plan.stages[0].ranks)}",
            plan.schedule,
            format_share(plan.prediction.bubble),
            peak,
        )
    return table


def given_lines(given: GivenPlan) -> list[str]:
    """What the layout loses, in sentences."""
    own, same, best = (plan_minimised(plan) for plan in (given.plan, given.same_shape, given.best))
    gap = given.plan.certificate.gap
    lines = [f"your layout is {format_gap(gap)} above the lower bound"]
    if same < own:
        lines.append(
            f"moving {counted(len(given.moved), 'layer')} to another stage gives a step that is "
            f"{format_gap(1 - same / own)} shorter"
        )
    else:
        lines.append("no other cut with as many stages and replicas was found to be faster")
    if best < min(own, same):
        shape = f"{counted(len(given.best.stages), 'stage')} x {counted(len(given.best.stages[0].ranks), 'replica')}"
        lines.append(
            f"{shape} under {given.best.schedule} are {format_gap(1 - best / own)} shorter"
        )
    return lines
