"""Memory of each rank: over the step, and at its peak by kind against the limit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autopart.records.cluster import smallest_memory
from autopart.records.plan import Plan
from autopart.records.prediction import ON_DEVICE
from autopart.report.columns import sizes
from autopart.report.labels import ranks_label
from autopart.report.memory_table import COLUMNS, MEANINGS, RankMemory, memory_of_ranks
from autopart.report.page.charts import Chart, bar, limit_line, made_chart
from autopart.report.page.contents import PageContents, drawn_ranks
from autopart.report.page.html_text import Column, Figure, chart_html, legend_html, table_html
from autopart.report.page.packed import Numbers, Packed, ticks
from autopart.simulator.memory import MemoryCurve
from autopart.text import counted
from autopart.units import bytes_unit, format_bytes, format_share

GROUPS = {
    "weights": "weights",
    "grads": "gradients",
    "optim.": "optimizer",
    "stash": "stash",
    "work": "workspace",
    "buffers": "buffers",
    "reserve": "reserve",
}
"""The words of the page for `COLUMNS`."""
SHARED = {
    "gathered": ("whole weights", "whole weights of layers that run"),
    "reducing": (
        "whole gradients",
        "gradients that are whole, or on their way, while a layer runs",
    ),
}
"""The words for bytes that are whole for a while, where GPUs share state."""
BINS = 400
"""Stretches of a step in which a curve keeps its largest place alone."""
HEAT_BINS = 240
MOST_LABEL = 12


class _Curve(NamedTuple):
    """One rank's bytes over time, thinned out."""

    times: Numbers
    stash: Numbers
    workspace: Numbers
    messages: Numbers
    gradients: Numbers
    gathered: Numbers
    reducing: Numbers


def _thinned(curve: MemoryCurve, makespan: float) -> _Curve:
    """The curve's largest place in each of `BINS` stretches, and its last one; all where there are few."""
    whole = curve.moving
    kept = np.arange(len(whole))
    if len(whole) > 2 * BINS:
        stretch = np.minimum((curve.times / (makespan or 1.0) * BINS).astype(int), BINS - 1)
        order = np.lexsort((whole, stretch))
        last_of = np.flatnonzero(np.diff(stretch[order], append=BINS))
        ends = np.flatnonzero(np.diff(stretch, append=BINS))
        kept = np.unique(np.concatenate([order[last_of], ends]))
    return _Curve(curve.times[kept], *(getattr(curve, kind)[kept] for kind in _Curve._fields[1:]))


def pack_curves(contents: PageContents, packed: Packed) -> dict[str, object]:
    """Add each rank's curve to `packed`. Returns what the script needs besides."""
    makespan, ranks = contents.timeline.makespan, drawn_ranks(contents)
    curves = [_thinned(contents.curves[rank], makespan) for rank in ranks]
    packed.add("memory_at", np.concatenate([ticks(c.times, makespan) for c in curves]))
    for kind in _Curve._fields[1:]:
        together = np.concatenate([getattr(c, kind) for c in curves])
        if kind not in SHARED or together.any():
            packed.add(f"memory_{kind}", together.astype(np.float32))
    constant = [contents.curves[rank].constant for rank in ranks]
    parts = {
        "weights": ("weights", "versions"),
        "gradients": ("gradients",),
        "optimizer": ("optimizer", "master"),
        "reserve": ("reserve",),
        "buffers": ("batch",),
        "stash": ("borrowed",),
    }
    return {
        "seconds": makespan,
        "ranks": ranks,
        "ends": np.cumsum([len(c.times) for c in curves]).tolist(),
        "constant": {
            name: [sum(own.get(kind, 0) for kind in kinds) for own in constant]
            for name, kinds in parts.items()
        },
        "limits": [smallest_memory(contents.plan.cluster, (rank,)) for rank in ranks],
    }


def heat_chart(contents: PageContents) -> Chart:
    """Each rank's share of its memory over the step, as a map of colours."""
    from plotly import graph_objects

    ranks, makespan = drawn_ranks(contents), contents.timeline.makespan
    bins = np.linspace(0.0, makespan, HEAT_BINS, endpoint=False)
    rows = [
        _shares(contents.curves[rank], bins, smallest_memory(contents.plan.cluster, (rank,)))
        for rank in ranks
    ]
    heat = graph_objects.Heatmap(
        z=np.round(100 * np.array(rows), 1).astype(np.float32),
        x=bins + (bins[1] - bins[0]) / 2,
        y=[f"rank {rank}" for rank in ranks],
        zmin=0,
        zmax=100,
        colorscale=[[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        colorbar={"title": {"text": "%"}, "thickness": 10, "outlinewidth": 0},
        hovertemplate="%{y} at %{x:.4g} s: %{z:.1f} % of its memory<extra></extra>",
    )
    return made_chart(
        [heat],
        {
            "height": min(900, 150 + 16 * max(len(ranks), 4)),
            "xaxis": {"title": {"text": "seconds since the step began"}},
            "yaxis": {"autorange": "reversed", "type": "category", "nticks": 16},
        },
    )


def _shares(curve: MemoryCurve, bins: Numbers, limit: int) -> Numbers:
    """The most bytes in each stretch, as a share of the limit."""
    whole = curve.moving + sum(curve.constant.values())
    place = np.maximum(np.searchsorted(curve.times, bins, side="right") - 1, 0)
    found = whole[place].astype(float)
    stretch = np.searchsorted(bins, curve.times, side="right") - 1
    np.maximum.at(found, np.maximum(stretch, 0), whole)
    return found / limit


def peak_chart(plan: Plan) -> Chart:
    """The peak of each rank by kind; ranks with equal memory share a bar."""
    groups = memory_of_ranks(plan)
    unit, scale = bytes_unit(max(group.memory_bytes for group in groups))
    names = _names(groups)
    traces = [
        bar(
            name,
            f"memory-{name}",
            f"rank %{{y}}: {name} %{{x:.2f}} {unit}",
            orientation="h",
            y=names,
            x=[_sum(group, COLUMNS[column]) / scale for group in groups],
        )
        for column, name in GROUPS.items()
        if any(_sum(group, COLUMNS[column]) for group in groups)
    ]
    layout: dict[str, Any] = {
        "barmode": "stack",
        "height": min(1400, 150 + 24 * max(len(groups), 3)),
        "yaxis": {"autorange": "reversed", "type": "category", "title": {"text": "ranks"}},
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
    }
    limits = sorted({group.memory_bytes for group in groups})
    lines = [limit_line("x", limit / scale, f"limit {format_bytes(limit)}") for limit in limits[:3]]
    layout["shapes"], layout["annotations"] = map(list, zip(*lines, strict=True))
    return made_chart(traces, layout)


def _sum(group: RankMemory, kinds: Sequence[str]) -> int:
    return sum(getattr(group.memory, kind) for kind in kinds)


def _names(groups: Sequence[RankMemory]) -> list[str]:
    labels = [ranks_label(group.ranks) for group in groups]
    return [
        label if len(label) <= MOST_LABEL else f"{min(group.ranks)} … ({len(group.ranks)})"
        for label, group in zip(labels, groups, strict=True)
    ]


def memory_figures(contents: PageContents) -> list[Figure]:
    """The sections on memory: over time, and at the peak."""
    groups = memory_of_ranks(contents.plan)
    fullest = max(groups, key=lambda group: group.peak_bytes / group.memory_bytes)
    share = format_share(fullest.peak_bytes / fullest.memory_bytes)
    ranks = drawn_ranks(contents)
    legend = _legend(groups)
    options = "".join(
        f'<option value="{place}"{" selected" if rank in fullest.ranks[:1] else ""}>{rank}</option>'
        for place, rank in enumerate(ranks)
    )
    over_time = (
        chart_html(
            "heat",
            "Map of memory: ranks downward, time to the right, share of the limit as colour",
            200,
        )
        + f'<p class="controls"><label>Memory by kind on rank <select id="memory-rank">{options}</select></label></p>'
        + legend
        + _shared_legend(contents)
        + chart_html(
            "memory",
            "Bytes on one rank over the step, stacked by kind, with the limit as a line",
            320,
        )
    )
    return [
        Figure(
            name="memory",
            title="Memory over the step",
            lead=f"The fullest rank is {fullest.ranks[0]}: {format_bytes(fullest.peak_bytes)} at its peak, {share} of "
            f"its GPU's {format_bytes(fullest.memory_bytes)}. Where a curve has many changes, each of {BINS} "
            "stretches shows its largest value.",
            drawing=over_time,
            table=_curve_table(contents, ranks),
        ),
        Figure(
            name="peak",
            title="Memory at the peak, by kind",
            lead=f"Each bar is one rank at its fullest moment; {counted(sum(len(g.ranks) for g in groups), 'rank')} "
            f"in {counted(len(groups), 'bar')}, as ranks with equal memory share one.",
            drawing=legend
            + chart_html(
                "peak", "Bars of memory at the peak, stacked by kind, with the limit as a line", 240
            ),
            table=_peak_table(groups),
        ),
    ]


def _legend(groups: Sequence[RankMemory]) -> str:
    there = {
        name: kinds
        for (column, kinds), name in zip(COLUMNS.items(), GROUPS.values(), strict=True)
        if any(_sum(group, COLUMNS[column]) for group in groups)
    }
    entries = [
        (f"memory-{name}", name, ", ".join(MEANINGS[kind] for kind in kinds))
        for name, kinds in there.items()
    ]
    return legend_html("Kinds of bytes", entries)


def _shared_legend(contents: PageContents) -> str:
    """The kinds of bytes that are whole for a while; empty where no rank has any."""
    there = [
        (f"memory-{kind}", *words)
        for kind, words in SHARED.items()
        if any(getattr(contents.curves[rank], kind).any() for rank in drawn_ranks(contents))
    ]
    return legend_html("Parts of the workspace, apart over time", there) if there else ""


def _curve_table(contents: PageContents, ranks: Sequence[int]) -> str:
    rows: list[tuple[object, ...]] = []
    for rank in ranks:
        curve = contents.curves[rank]
        whole = curve.moving
        place = int(np.argmax(whole))
        always = sum(curve.constant.values())
        limit = smallest_memory(contents.plan.cluster, (rank,))
        rows.append(
            (
                rank,
                format_bytes(always),
                format_bytes(always + int(whole[place])),
                f"{curve.times[place]:.4g} s",
                format_share((always + int(whole[place])) / limit),
            )
        )
    columns = [
        Column("rank"),
        Column("always"),
        Column("most"),
        Column("first at"),
        Column("of limit"),
    ]
    return table_html("Memory of each rank over the step", columns, rows)


def _peak_table(groups: Sequence[RankMemory]) -> str:
    kinds = [kind for kind in ON_DEVICE if any(getattr(g.memory, kind) for g in groups)]
    unit, cells = sizes(
        [
            *(getattr(group.memory, kind) for kind in kinds for group in groups),
            *(group.peak_bytes for group in groups),
            *(group.memory_bytes for group in groups),
        ]
    )
    width = len(groups)
    names = [*(MEANINGS[kind] for kind in kinds), "peak", "limit"]
    columns = [Column("kind", False), *(Column(ranks_label(group.ranks)) for group in groups)]
    rows = [(name, *cells[at * width : (at + 1) * width]) for at, name in enumerate(names)]
    return table_html(f"Memory at the peak by kind and ranks, {unit}", columns, rows)
