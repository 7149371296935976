"""How many GPUs: days and cost of each plan on the front of a sizing."""

from typing import Any

from autopart.records.size import SizedPlan, Sizing
from autopart.report.page.charts import Chart, limit_line, line, made_chart
from autopart.report.page.html_text import Column, Figure, chart_html, legend_html, table_html
from autopart.report.size_table import plan_line, proof_lines, question_line
from autopart.units import format_gap

COLOURS = ("accent", "mark", "other")
"""Variables of the style sheet, one per GPU kind; they begin again behind the last."""
SECONDS_PER_DAY = 86400.0


def size_chart(sizing: Sizing) -> Chart:
    """Points: days and dollars of each plan, with its number of GPUs."""
    traces: list[Any] = []
    for at, kind in enumerate(sizing.kinds):
        rows = [own for own in sizing.front if own.gpu == kind.gpu]
        if rows:
            traces.append(
                line(
                    kind.gpu,
                    COLOURS[at % len(COLOURS)],
                    "%{text} GPUs: %{x:.4g} days, %{y:,.0f} dollars",
                    mode="markers+text",
                    x=[_days(own) for own in rows],
                    y=[own.cost for own in rows],
                    text=[str(own.gpus) for own in rows],
                    textposition="top center",
                )
            )
    marks = []
    if sizing.within_seconds is not None:
        marks.append(limit_line("x", sizing.within_seconds / SECONDS_PER_DAY, "date"))
    if sizing.budget is not None:
        marks.append(limit_line("y", sizing.budget, "budget"))
    layout = {
        "height": 360,
        "xaxis": {"title": {"text": "days"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "dollars"}},
        "shapes": [shape for shape, _ in marks],
        "annotations": [note for _, note in marks],
    }
    return made_chart(traces, layout)


def _days(own: SizedPlan) -> float:
    return own.training_seconds / SECONDS_PER_DAY


def size_figure(sizing: Sizing) -> Figure:
    """The section with the front of GPUs, days and cost."""
    shown = {own.gpu for own in sizing.front}
    legend = [
        (COLOURS[at % len(COLOURS)], kind.gpu, f"{kind.price:g} dollars per GPU hour")
        for at, kind in enumerate(sizing.kinds)
        if kind.gpu in shown
    ]
    columns = [
        Column("GPU kind", False), Column("GPUs"), Column("days"), Column("dollars"), Column("gap"), Column("plan", False),
        Column("best in", False),
    ]  # fmt: skip
    rows = [
        (
            own.gpu,
            own.gpus,
            f"{_days(own):,.2f}",
            f"{own.cost:,.0f}",
            format_gap(own.gap),
            plan_line(own),
            ", ".join(own.marks),
        )
        for own in sizing.front
    ]
    proofs = [(text,) for text in proof_lines(sizing)]
    table = table_html("Plans on the front", columns, rows)
    table += table_html("What is proven", [Column("statement", False)], proofs)
    return Figure(
        name="size",
        title="How many GPUs",
        lead=f"{question_line(sizing)}. No plan has no more GPUs, days and cost than another.",
        drawing=legend_html("GPU kinds", legend)
        + chart_html("size", "Days and dollars of each plan, with its number of GPUs", 360),
        table=table,
    )
