"""The plan beside other plans: the usual splits, the lower bound, and the best plans for less memory."""

from collections.abc import Mapping
from typing import Any

from autopart.cost.stage_times import plan_minimised
from autopart.records.cluster import smallest_memory
from autopart.records.plan import Plan
from autopart.report.page.charts import Chart, bar, limit_line, line, made_chart
from autopart.report.page.contents import PageContents
from autopart.report.page.html_text import (
    Column,
    Figure,
    chart_html,
    escape,
    legend_html,
    table_html,
)
from autopart.report.plan_table import peak_bytes
from autopart.search.memory_sweep import SweepPoint
from autopart.search.plans_beside import PlansBeside
from autopart.units import bytes_unit, format_bytes, format_gap, format_time, time_unit

SPLITS = {
    "uniform": "equal layer counts",
    "parameters": "equal parameter bytes",
}
"""The usual splits in words."""


def _plans(contents: PageContents) -> dict[str, Plan]:
    """The plan and the splits that are feasible."""
    found = {"this plan": contents.plan}
    if contents.beside is not None:
        for name, other in contents.beside.baselines.items():
            if isinstance(other, Plan):
                found[SPLITS.get(name, name)] = other
    return found


def splits_chart(contents: PageContents) -> Chart:
    """Bars: the plan, the usual splits, and the bounds that no plan can beat."""
    plan, plans = contents.plan, _plans(contents)
    seconds = {name: plan_minimised(other) for name, other in plans.items()}
    unit, scale = time_unit(max(seconds.values()))
    bounds = {
        "lower bound": plan.certificate.lower_bound,
        "bound over every order": plan.certificate.any_order_bound,
    }
    bounds = {name: value for name, value in bounds.items() if value > 0}
    hover = f"%{{y}}: %{{x:.4g}} {unit}"
    traces = [
        bar(
            kind,
            colour,
            hover,
            orientation="h",
            y=list(values),
            x=[value / scale for value in values.values()],
            text=[format_time(value) for value in values.values()],
            textposition="auto",
            width=0.6,
        )
        for kind, colour, values in (
            ("plan", "accent", {"this plan": seconds.pop("this plan")}),
            ("usual splits", "other", seconds),
            ("proven bounds", "bound", bounds),
        )
        if values
    ]
    layout = {
        "height": 120 + 42 * (len(plans) + len(bounds)),
        "barmode": "overlay",
        "xaxis": {"title": {"text": f"{plan.objective}, {unit}"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return made_chart(traces, layout)


def sweep_chart(plan: Plan, points: list[SweepPoint]) -> Chart:
    """Step time over the memory of a GPU."""
    there = [(p.memory_bytes, p.plan) for p in reversed(points) if p.plan is not None]
    unit, scale = bytes_unit(max(point.memory_bytes for point in points))
    seconds = [other.prediction.step_time for _, other in there]
    time_name, time_scale = time_unit(max(*seconds, plan.prediction.step_time))
    own = smallest_memory(plan.cluster, range(len(plan.orders)))
    most = max([*(memory for memory, _ in there), own])
    curve = line(
        "best plan",
        "accent",
        f"%{{x:.4g}} {unit}: %{{y:.4g}} {time_name}, %{{text}}",
        mode="lines+markers",
        x=[*(memory / scale for memory, _ in there), most / scale],
        y=[*(value / time_scale for value in seconds), seconds[-1] / time_scale],
        text=[_shape(other) for _, other in [*there, there[-1]]],
    )
    mark = line(
        "this plan",
        "mark",
        f"this plan: {format_time(plan.prediction.step_time)} within {format_bytes(own)}",
        mode="markers",
        x=[own / scale],
        y=[plan.prediction.step_time / time_scale],
    )
    least = there[0][0]
    shape, note = limit_line("x", least / scale, "")
    note |= {"text": f" nothing fits below {format_bytes(least)}", "xanchor": "left", "y": 0.02}
    layout: dict[str, Any] = {
        "height": 340,
        "xaxis": {"title": {"text": f"memory of a GPU, {unit}"}},
        "yaxis": {"title": {"text": f"step, {time_name}"}, "rangemode": "tozero"},
        "shapes": [shape],
        "annotations": [note],
    }
    return made_chart([curve, mark], layout)


def _shape(plan: Plan) -> str:
    replicas = max(len(stage.ranks) for stage in plan.stages)
    return f"{len(plan.stages)} x {replicas}"


def has_sweep(beside: PlansBeside | None) -> bool:
    """Whether there is a sweep with a plan in it."""
    return beside is not None and any(point.plan is not None for point in beside.sweep)


MISSING = "Give the plan's profile with --profile to see the usual splits here."


def time_figures(contents: PageContents) -> list[Figure]:
    """The sections on step time: beside other splits, and over memory."""
    plan, beside = contents.plan, contents.beside
    own = plan_minimised(plan)
    bound = plan.certificate.lower_bound
    lead = f"The {plan.objective} is {format_time(own)}, and no plan for the same question is below {format_time(bound)}."
    figures = [
        Figure(
            name="splits",
            title="Beside the usual splits and the bound",
            lead=lead if beside is not None else f"{lead} {MISSING}",
            drawing=chart_html(
                "splits", "Bars of this plan, the usual splits and the proven bounds", 240
            ),
            table=_splits_table(contents),
        )
    ]
    if beside is None:
        return figures
    drawing = f'<p class="note">{escape(beside.no_sweep)}</p>'
    if has_sweep(beside):
        drawing = legend_html("Points", [("accent", "best plan", ""), ("mark", "this plan", "")])
        drawing += chart_html("sweep", "Step of the best plan over the memory of a GPU", 340)
    figures.append(
        Figure(
            name="sweep",
            title="The best plan for more and less memory",
            lead="Each point is solved anew for a GPU with that much memory, with all else as in the plan's question.",
            drawing=drawing,
            table=_sweep_table(beside),
        )
    )
    return figures


def _splits_table(contents: PageContents) -> str:
    plan, own = contents.plan, plan_minimised(contents.plan)
    columns = [
        Column("split", False), Column(plan.objective), Column("slower by"), Column("peak"), Column("remark", False),
    ]  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (
            name,
            format_time(plan_minimised(other)),
            format_gap(round(plan_minimised(other) / own - 1, 4) + 0.0 if own else None),
            format_bytes(peak_bytes(other)),
            "",
        )
        for name, other in _plans(contents).items()
    ]
    others: Mapping[str, Plan | str] = {} if contents.beside is None else contents.beside.baselines
    rows += [
        (SPLITS.get(name, name), "-", "-", "-", reason)
        for name, reason in others.items()
        if isinstance(reason, str)
    ]
    rows.append(
        (
            "lower bound",
            format_time(plan.certificate.lower_bound),
            "-",
            "-",
            f"for {plan.certificate.assumes}",
        )
    )
    return table_html("This plan, the usual splits and the bound", columns, rows)


def _sweep_table(beside: PlansBeside) -> str:
    if not beside.sweep:
        return ""
    columns = [
        Column("memory of a GPU"), Column("step"), Column("gap"), Column("stages x replicas"), Column("schedule", False),
    ]  # fmt: skip
    rows = [
        (format_bytes(point.memory_bytes), "nothing fits", "-", "-", "-")
        if point.plan is None
        else (
            format_bytes(point.memory_bytes),
            format_time(point.plan.prediction.step_time),
            format_gap(point.plan.certificate.gap),
            _shape(point.plan),
            point.plan.schedule,
        )
        for point in beside.sweep
    ]
    return table_html("The best plan within each memory size", columns, rows)
