"""Plans, profiles and timelines as HTML for a notebook: a short table, and the step as a static drawing.

The drawing is SVG with the notebook's own text colour. So it fits light and dark themes, and needs no script.
"""

import html
from collections.abc import Iterator, Sequence

from autopart.errors import AutopartError
from autopart.records.plan import Plan
from autopart.records.profile import Profile, calibration_of
from autopart.report.labels import layers_label, ranks_label
from autopart.report.made_by import made_by
from autopart.report.plan_table import plan_title
from autopart.report.timeline import MOST_RANKS, idle_line
from autopart.simulator.timeline import Timeline, rank_spans, simulate_plan, used_ranks
from autopart.text import counted, visible
from autopart.units import format_bytes, format_gap, format_share, format_time

WIDTH, LEFT, ROW = 760, 60, 22
COLUMNS = WIDTH - LEFT
"""The narrowest stretch that is drawn is one of so many columns."""
COLOURS = {
    "F": "#4c86c6",
    "B": "#c8763c",
    "I": "#c8763c",
    "W": "#b08d2a",
    "FB": "#7b79c9",
    "sync": "#9a5fa6",
    "update": "#7d8797",
}
"""Fill for each kind of work; each stands out from white and from black."""
WORDS = {
    "F": "forward",
    "B": "backward",
    "I": "input-gradient half",
    "W": "weight-gradient half",
    "FB": "forward beside backward",
    "sync": "gradient sync",
    "update": "optimizer step",
}
MOST_ROWS = 16
"""Rows of a table; the rest is counted in its last line."""


def shown_in_notebook(value: object) -> str:
    """The HTML of a plan, a profile or a timeline."""
    if isinstance(value, Plan):
        return _plan(value)
    if isinstance(value, Profile):
        return _profile(value)
    assert isinstance(value, Timeline)
    return _timeline(value)


def _plan(plan: Plan) -> str:
    prediction, certificate = plan.prediction, plan.certificate
    said = (
        f"step {format_time(prediction.step_time)}, lower bound {format_time(certificate.lower_bound)}, gap "
        f"{format_gap(certificate.gap)}, idle {format_share(prediction.bubble)}, schedule {plan.schedule}, "
        f"{counted(plan.num_microbatches, 'microbatch')} of {plan.microbatch_size}"
    )
    rows = [
        (
            str(place),
            layers_label(stage.layers),
            ranks_label(stage.ranks),
            format_time(predicted.forward_time),
            format_time(predicted.backward_time),
            format_bytes(predicted.peak_bytes),
        )
        for place, (stage, predicted) in enumerate(zip(plan.stages, prediction.stages, strict=True))
    ]
    table = _table(("stage", "layers", "ranks", "F", "B", "peak"), rows)
    try:
        timeline = simulate_plan(plan)
    except AutopartError as error:  # a plan that was made by hand may have no step
        return _framed(plan_title(plan), said, table, _line(str(error)))
    return _framed(plan_title(plan), said, table, _drawing(timeline), _line(idle_line(timeline)))


def _profile(profile: Profile) -> str:
    layers = profile.graph.layers
    backward = sum(layer.input_grad_time + layer.weight_grad_time for layer in layers)
    method = made_by(profile.method, calibration_of(profile))
    said = (
        f"{counted(len(layers), 'layer')}, {method} on {profile.device.name} in {profile.dtype}, microbatches of "
        f"{profile.microbatch_size}: forward {format_time(sum(layer.forward_time for layer in layers))}, "
        f"backward {format_time(backward)}, parameters {format_bytes(sum(layer.param_bytes for layer in layers))}, "
        f"stash {format_bytes(sum(layer.stash_bytes for layer in layers))}"
    )
    rows = [
        (
            layer.name,
            layer.kind,
            format_time(layer.forward_time),
            format_time(layer.input_grad_time + layer.weight_grad_time),
            format_bytes(layer.param_bytes),
            format_bytes(layer.stash_bytes),
        )
        for layer in layers
    ]
    table = _table(("layer", "kind", "F", "B", "parameters", "stash"), rows)
    return _framed(profile.source.model, said, table)


def _timeline(timeline: Timeline) -> str:
    ranks = used_ranks(timeline)
    said = f"{counted(len(ranks), 'rank')}, {counted(timeline.actions.num_actions, 'action')}, {idle_line(timeline)}"
    return _framed(f"a step of {format_time(timeline.makespan)}", said, _drawing(timeline))


def _framed(title: str, said: str, *parts: str) -> str:
    return f"<div><p><b>{_escaped(title)}</b><br>{_escaped(said)}</p>{''.join(parts)}</div>"


def _line(text: str) -> str:
    return f"<p>{_escaped(text)}</p>"


def _escaped(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = [*rows[:MOST_ROWS]]
    body = "".join(
        "<tr>" + "".join(f"<td>{_escaped(c)}</td>" for c in row) + "</tr>" for row in shown
    )
    if len(rows) > len(shown):
        body += f'<tr><td colspan="{len(heads)}">… and {len(rows) - len(shown)} more</td></tr>'
    head = "".join(f"<th>{_escaped(one)}</th>" for one in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _drawing(timeline: Timeline) -> str:
    """The step: a lane for each rank, up to `MOST_RANKS` of them."""
    used = used_ranks(timeline)
    ranks = used[:: -(-len(used) // MOST_RANKS)] if len(used) > MOST_RANKS else used
    kinds: set[str] = set()
    lanes = "".join(_lane(timeline, rank, place, kinds) for place, rank in enumerate(ranks))
    height = ROW * len(ranks) + 26
    legend = "".join(
        f'<span style="display:inline-block;margin-right:1em"><span style="display:inline-block;width:.8em;height:.8em;'
        f'background:{COLOURS[kind]}"></span> {WORDS[kind]}</span>'
        for kind in COLOURS
        if kind in kinds
    )
    few = "" if len(ranks) == len(used) else f", {len(ranks)} of {counted(len(used), 'rank')}"
    label = f"timeline of a step of {format_time(timeline.makespan)}{few}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" style="width:100%;max-width:{WIDTH}px;height:auto" role="img" '
        f'aria-label="{_escaped(label)}" font-family="sans-serif" font-size="11" fill="currentColor">{lanes}'
        f'<text x="{LEFT}" y="{height - 8}">0</text><text x="{WIDTH}" y="{height - 8}" text-anchor="end">'
        f"{_escaped(format_time(timeline.makespan))}</text></svg><p>{legend}{_escaped(few.lstrip(', '))}</p>"
    )


def _lane(timeline: Timeline, rank: int, place: int, kinds: set[str]) -> str:
    """One rank's work; stretches of one kind that share a column are one rectangle."""
    top = place * ROW
    scale = COLUMNS / (timeline.makespan or 1.0)
    parts = [
        f'<text x="0" y="{top + 14}">rank {rank}</text>'
        f'<rect x="{LEFT}" y="{top + 9}" width="{COLUMNS}" height="1" opacity=".35"/>'
    ]
    for kind, name, start, end in _merged(_work(timeline, rank), 1.0 / scale):
        kinds.add(kind)
        x, width = LEFT + start * scale, max((end - start) * scale - 0.4, 0.4)
        parts.append(
            f'<rect x="{x:.1f}" y="{top + 1}" width="{width:.1f}" height="{ROW - 5}" fill="{COLOURS[kind]}">'
            f"<title>{_escaped(name)}: {_escaped(format_time(end - start))}</title></rect>"
        )
    return "".join(parts)


Work = tuple[str, str, float, float]
"""A kind, a name, a start and an end."""


def _work(timeline: Timeline, rank: int) -> Iterator[Work]:
    for span in rank_spans(timeline, rank):
        yield span.op, span.name, span.start, span.end
    for _, start, end in timeline.syncs[rank]:
        yield "sync", "gradient sync", start, end
    synced, done = timeline.sync_end[rank], timeline.rank_end[rank]
    if done > synced:
        yield "update", "optimizer step", synced, done


def _merged(work: Iterator[Work], column: float) -> Iterator[Work]:
    """The stretches, with neighbours within one column as one: a drawing has at most two for each column."""
    waiting: Work | None = None
    for one in work:
        if waiting is not None and one[3] - waiting[2] <= column:
            first = waiting
            longer = one if one[3] - one[2] > first[3] - first[2] else first
            waiting = (longer[0], f"{first[1].split(' … ')[0]} … {one[1]}", first[2], one[3])
            continue
        if waiting is not None:
            yield waiting
        waiting = one
    if waiting is not None:
        yield waiting
