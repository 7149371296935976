"""A run beside its prediction: seconds of each kind of action, and the parts of each rank's step."""

from autopart.fidelity.compare import ActionFidelity, Fidelity
from autopart.report.fidelity_table import PARTS
from autopart.report.page.charts import Chart, bar, made_chart
from autopart.report.page.contents import Measured
from autopart.report.page.html_text import (
    Column,
    Figure,
    chart_html,
    escape,
    legend_html,
    table_html,
)
from autopart.units import format_bytes, format_time, time_unit


def measured_chart(found: Fidelity) -> Chart:
    """Bars of each action's seconds, predicted and measured."""
    unit, scale = time_unit(max(max(one.predicted, one.measured) for one in found.actions))
    names = [_name(one) for one in found.actions]
    hover = f"%{{x}}, %{{fullData.name}}: %{{y:.4g}} {unit}"
    traces = [
        bar(
            "predicted",
            "accent",
            hover,
            x=names,
            y=[one.predicted / scale for one in found.actions],
        ),
        bar(
            "measured",
            "mark",
            hover,
            x=names,
            y=[one.measured / scale for one in found.actions],
            error_y={
                "type": "data",
                "array": [one.spread / scale / 2 for one in found.actions],
                "color": "var(--ink)",
                "thickness": 1,
            },
        ),
    ]
    layout = {
        "height": 340,
        "barmode": "group",
        "xaxis": {"type": "category", "title": {"text": "stage and action"}},
        "yaxis": {"title": {"text": f"per microbatch, {unit}"}, "rangemode": "tozero"},
    }
    return made_chart(traces, layout)


def _name(one: ActionFidelity) -> str:
    return f"{one.stage}{one.op}"


def measured_figure(measured: Measured) -> Figure:
    """The section with a run beside its prediction."""
    run, found = measured.run, measured.fidelity
    lead = (
        f"Measured on {run.device} ({run.backend}): a step of {format_time(run.step_time)}; predicted are "
        f"{format_time(run.predicted_step_time)} ({run.error:+.1%}). Thin lines are half the interquartile range."
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.notes)
    return Figure(
        name="measured",
        title="Predicted beside measured",
        lead=lead,
        drawing=legend_html("Bars", [("accent", "predicted", ""), ("mark", "measured", "")])
        + chart_html("measured", "Bars of each action's seconds, predicted beside measured", 340)
        + notes,
        table=_tables(found),
    )


def _tables(found: Fidelity) -> str:
    columns = [
        Column("stage"), Column("action", False), Column("predicted"), Column("measured"), Column("spread"),
        Column("error"),
    ]  # fmt: skip
    rows = [
        (
            one.stage,
            one.op if isinstance(one, ActionFidelity) else f"{one.op}, send",
            format_time(one.predicted),
            format_time(one.measured),
            format_time(one.spread),
            f"{one.error:+.1%}",
        )
        for one in (*found.actions, *found.sends)
    ]
    tables = table_html("Seconds per microbatch", columns, rows)
    parts = [
        (rank.rank, kind, *(format_time(getattr(of, part)) for part in PARTS))
        for rank in found.ranks
        for kind, of in (("predicted", rank.predicted), ("measured", rank.measured))
        if of is not None
    ]
    columns = [Column("rank"), Column("", False), *(Column(part) for part in PARTS)]
    tables += table_html("Parts of each rank's step", columns, parts)
    sized = [
        (
            rank.rank,
            format_bytes(rank.predicted_bytes),
            "not counted" if rank.measured_bytes is None else format_bytes(rank.measured_bytes),
        )
        for rank in found.ranks
    ]
    columns = [Column("rank"), Column("predicted"), Column("measured")]
    return tables + table_html("Tensor bytes at the peak", columns, sized)
