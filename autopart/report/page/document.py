"""The whole page: one file, which a browser shows without any network.

The page's own script draws the timeline at once. Then it unpacks plotly, and draws the charts one by
one. The content policy allows these two scripts alone, by their hashes.
"""

import base64
import functools
import hashlib
import importlib.resources
from collections.abc import Sequence

from autopart.cost.stage_times import plan_bottleneck, plan_minimised
from autopart.records.cluster import num_gpus, smallest_memory
from autopart.records.plan import Plan
from autopart.records.plan_degrees import rank_sizes
from autopart.records.version import __version__
from autopart.report.page.charts import Chart, plotly_source
from autopart.report.page.contents import PageContents
from autopart.report.page.html_text import Figure, escape, figure_html, json_script
from autopart.report.page.measured_section import measured_chart, measured_figure
from autopart.report.page.memory_section import (
    heat_chart,
    memory_figures,
    pack_curves,
    peak_chart,
)
from autopart.report.page.model_section import model_figure
from autopart.report.page.network_section import network_figure
from autopart.report.page.packed import Packed, compressed_script
from autopart.report.page.rank_section import rank_figures
from autopart.report.page.size_section import size_chart, size_figure
from autopart.report.page.time_section import has_sweep, splits_chart, sweep_chart, time_figures
from autopart.report.page.timeline_section import pack_lanes, timeline_figure
from autopart.report.plan_table import figures, plan_title
from autopart.text import counted
from autopart.units import format_bytes, format_gap, format_share, format_time

FORMAT = "autopart-report"
"""The name by which an earlier report is known, within quotes, near its top."""
MARK = f'<meta name="generator" content="{FORMAT}">'


def page_html(contents: PageContents) -> str:
    """The page for a plan."""
    packed = Packed()
    data = {
        "timeline": pack_lanes(contents, packed),
        "memory": pack_curves(contents, packed),
        "arrays": packed.places,
        "charts": _charts(contents),
    }
    sections = sections_of(contents)
    script, plotly = _script(), plotly_source()
    title = escape(plan_title(contents.plan))
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n' + MARK + "\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script, plotly)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{_asset('page.css')}</style>\n</head>\n"
    )
    body = "\n".join(map(figure_html, sections))
    return (
        f'{head}<body>\n<a class="skip" href="#main">To the figures</a>\n'
        f"<header><h1>{title}</h1>{_opening(contents)}{_contents_list(sections)}</header>\n"
        f'<main id="main">\n{body}\n{_notes(contents)}</main>\n'
        f"<footer><p>{escape(contents.file)}, drawn by autopart {__version__}. Nothing on this page comes from the "
        "network.</p></footer>\n"
        f"{json_script('data', data)}\n{compressed_script('arrays', packed.content)}\n"
        f"{_plotly_script()}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def sections_of(contents: PageContents) -> list[Figure]:
    """The sections of the page, in order."""
    sections = [
        timeline_figure(contents),
        *time_figures(contents),
        model_figure(contents),
        *memory_figures(contents),
        network_figure(contents),
        *rank_figures(contents),
    ]
    if contents.measured is not None:
        sections.insert(1, measured_figure(contents.measured))
    if contents.sizing is not None:
        sections.append(size_figure(contents.sizing))
    return sections


def left_out(contents: PageContents) -> list[str]:
    """The figures that the page lacks, with the reasons; none where only options are missing."""
    beside = contents.beside
    return (
        []
        if beside is None or not beside.no_sweep
        else [f"no sweep over memory: {beside.no_sweep}"]
    )


def _charts(contents: PageContents) -> dict[str, Chart]:
    charts = {
        "splits": splits_chart(contents),
        "heat": heat_chart(contents),
        "peak": peak_chart(contents.plan),
    }
    beside = contents.beside
    if beside is not None and has_sweep(beside):
        charts["sweep"] = sweep_chart(contents.plan, list(beside.sweep))
    if contents.measured is not None:
        charts["measured"] = measured_chart(contents.measured.fidelity)
    if contents.sizing is not None:
        charts["size"] = size_chart(contents.sizing)
    return charts


def _asset(name: str) -> str:
    return importlib.resources.files("autopart.report.page").joinpath(name).read_text("utf-8")


@functools.cache
def _plotly_script() -> str:
    """plotly, compressed; it takes half a second, and is the same for each page of a process."""
    return compressed_script("plotly", plotly_source().encode())


def _script() -> str:
    return "\n".join(map(_asset, ("page.js", "timeline.js", "charts.js")))


def _policy(*scripts: str) -> str:
    """The content policy: these scripts and nothing else; styles and pictures within the page."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    ]
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _opening(contents: PageContents) -> str:
    """The opening line, and the figures that most readers look for."""
    plan = contents.plan
    prediction, own = plan.prediction, plan_minimised(plan)
    batch = plan.num_microbatches * plan.microbatch_size
    fullest = max(
        range(len(plan.orders)),
        key=lambda rank: prediction.rank_peak_bytes[rank] / smallest_memory(plan.cluster, (rank,)),
    )
    peak, limit = prediction.rank_peak_bytes[fullest], smallest_memory(plan.cluster, (fullest,))
    used = _gpus_used(plan)
    gap, bound = plan.certificate.gap, format_time(plan.certificate.lower_bound)
    what = {
        "step": f"A step takes {format_time(own)}",
        "period": f"From step to step it takes {format_time(own)}",
        "bottleneck": f"The busiest rank works for {format_time(plan_bottleneck(plan))} of a step",
    }[plan.objective]
    apart = (
        "and nothing is proven about faster plans"
        if gap is None
        else f"as fast as the proven lower bound of {bound}"
        if round(gap, 4) == 0
        else f"{format_gap(gap)} above the proven lower bound of {bound}"
    )
    said = (
        f"{what} for {counted(batch, 'sample')}, {apart}. The GPUs are idle for "
        f"{format_share(prediction.bubble)} of it, and the fullest one needs {format_bytes(peak)} of "
        f"{format_bytes(limit)}."
    )
    tiles = (
        (plan.objective, format_time(own), f"{batch / own:.3g} samples/s" if own else ""),
        ("gap", format_gap(gap), f"bound {bound}"),
        ("GPUs", str(used), f"of {num_gpus(plan.cluster)} {plan.cluster.gpu}"),
        ("memory", format_share(peak / limit), f"{format_bytes(peak)} at the peak"),
        ("idle", format_share(prediction.bubble), f"schedule {plan.schedule}"),
    )
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in tiles
    )
    return f'<p class="opening">{escape(said)}</p><dl class="tiles">{listed}</dl>'


def _gpus_used(plan: Plan) -> int:
    degrees = rank_sizes(plan)
    return sum(degrees[rank] for rank in {rank for stage in plan.stages for rank in stage.ranks})


def _contents_list(sections: Sequence[Figure]) -> str:
    links = "".join(f'<li><a href="#{one.name}">{escape(one.title)}</a></li>' for one in sections)
    return f'<nav aria-label="Figures"><ul>{links}<li><a href="#notes">Notes</a></li></ul></nav>'


def _notes(contents: PageContents) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in figures(contents.plan))
    return (
        '<section id="notes" aria-labelledby="notes-title"><h2 id="notes-title">Notes</h2>'
        f"<ul>{lines}</ul></section>"
    )
