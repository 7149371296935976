"""A step as text: one line for each rank, time from left to right."""

from collections import Counter
from statistics import median
from typing import NamedTuple

from rich.text import Text

from autopart.records.plan import Plan
from autopart.schedules.actions import has_pairs
from autopart.schedules.state_actions import StateOp
from autopart.simulator.idle import CAUSES, idle_times
from autopart.simulator.state_actions import (
    exposed_times,
    has_state_actions,
    state_slices,
)
from autopart.simulator.timeline import RankSpan, Timeline, optimizer_span, rank_spans, used_ranks
from autopart.text import counted
from autopart.units import format_share, format_time

MOST_RANKS = 16
"""Most lines in a drawing; with more ranks, one rank per stage is drawn."""
_STYLES = {"F": "cyan", "B": "green", "I": "green", "W": "yellow", "FB": "blue"}
_LETTERS = {"FB": "P"}
"""The letter of an overlapped pair; other actions have their op's."""
_MESSAGES: dict[StateOp, str] = {"UNSHARD": "<", "REDUCE_GRAD": ">"}
"""The signs of gathers and reductions once per step."""


class _Scale(NamedTuple):
    """The scale for a drawing."""

    columns: int
    """How many columns the drawing has."""
    seconds: float
    """Seconds that all columns together cover."""
    named: bool
    """Whether actions are drawn with their names; else with letters."""


def timeline_text(plan: Plan, timeline: Timeline, width: int) -> Text:
    """Draw `timeline` in `width` columns.

        rank 0  0F0- 0F1- ......... 0B0----- 0B1-----+
        rank 1  ..... 1F0- 1B0----- 1F1- 1B1----- ...+

    Actions too narrow for names are letters, capital and small alternately: `FFFfffBBBbbb`.
    Above `MOST_RANKS` ranks, one rank per stage is drawn.
    """
    ranks = _drawn_ranks(plan, timeline)
    margin = len(f"rank {max(ranks)}") + 2
    scale = _scale(timeline, ranks, max(width - margin, 10))
    text = Text(no_wrap=True, overflow="crop")
    for rank in ranks:
        text.append(f"rank {rank}".ljust(margin))
        text.append_text(_row(plan, timeline, rank, scale))
        text.append("\n")
    return text.append(_legend(plan, timeline, ranks, scale))


def idle_line(timeline: Timeline) -> str:
    """`idle 12.0 % of rank-seconds: drain 8.0 %, fill 4.0 %`, the largest cause first."""
    ranks = used_ranks(timeline)
    each = idle_times(timeline)
    total = timeline.makespan * len(ranks) or 1.0
    shares = {cause: sum(each[rank][cause] for rank in ranks) / total for cause in CAUSES}
    largest = sorted((c for c in CAUSES if shares[c] >= 5e-4), key=lambda c: -shares[c])
    named = ", ".join(f"{cause} {format_share(shares[cause])}" for cause in largest)
    share = format_share(sum(shares.values()))
    return f"idle {share} of rank-seconds" + (f": {named}" if named else "")


def state_line(plan: Plan, timeline: Timeline) -> str:
    """`sharded state: gathers 1.2 % and reductions 0.0 % of rank-seconds are exposed`; empty without it."""
    if not has_state_actions(plan):
        return ""
    ranks = used_ranks(timeline)
    each = [exposed_times(state_slices(plan, timeline, rank)) for rank in ranks]
    total = timeline.makespan * len(ranks) or 1.0
    gathers, sums = (format_share(sum(one.total(op) for one in each) / total) for op in _MESSAGES)
    return f"sharded state: gathers {gathers} and reductions {sums} of rank-seconds are exposed"


def _drawn_ranks(plan: Plan, timeline: Timeline) -> list[int]:
    busy = used_ranks(timeline)
    if len(busy) <= MOST_RANKS:
        return busy
    return [min(stage.ranks) for stage in plan.stages]


def _scale(timeline: Timeline, ranks: list[int], columns: int) -> _Scale:
    """Actions are named where the median forward has room for a name and a gap."""
    drawn = [one for rank in ranks for one in rank_spans(timeline, rank)]
    seconds = timeline.makespan or 1.0
    room = [
        (one.end - one.start) * columns / seconds - len(one.name)
        for one in drawn
        if one.op.startswith("F")
    ]
    return _Scale(columns, seconds, named=median(room) >= 1)


def _row(plan: Plan, timeline: Timeline, rank: int, scale: _Scale) -> Text:
    # Later layers paint over earlier ones: idle, then syncs and the update, then actions.
    row = Text("." * scale.columns, style="dim")
    spans = rank_spans(timeline, rank)
    for _, start, stop in timeline.syncs[rank]:
        sync = _span(start, stop, scale)
        row = _paint(row, sync, "~" * len(sync), "magenta")
    update = _span(*optimizer_span(timeline, rank), scale)
    row = _paint(row, update, "+" * len(update), "")
    for one in state_slices(plan, timeline, rank):
        if one.action is None:
            span = _span(one.start, one.end, scale)
            row = _paint(row, span, _MESSAGES[one.op] * len(span), "magenta")
    turns: Counter[str] = Counter()
    for one in spans:
        span = _span(one.start, one.end, scale)
        cell = _name(one, len(span)) if scale.named else _letters(one, len(span), turns)
        row = _paint(row, span, cell, _STYLES[one.op])
    return row


def _span(start: float, end: float, scale: _Scale) -> range:
    """The columns from `start` to `end`, in seconds; at least one where any time passes."""
    each = scale.seconds / scale.columns
    first = min(round(start / each), scale.columns - 1)
    last = min(max(round(end / each), first + 1), scale.columns)
    return range(first, last if end > start else first)


def _paint(row: Text, span: range, cell: str, style: str) -> Text:
    return Text.assemble(row[: span.start], (cell, style), row[span.stop :]) if span else row


def _name(one: RankSpan, width: int) -> str:
    """The longest name that fits, extended to `width` columns with a gap.

    An action without any time has no column, and no name.
    """
    short = ";".join(f"{action.op}{action.microbatch}" for action in one.actions)
    names = (one.name, short, _LETTERS.get(one.op, one.op), "")
    name = next(name for name in names if len(name) <= width)
    return name if len(name) == width else name.ljust(width - 1, "-") + " "


def _letters(one: RankSpan, width: int, turns: Counter[str]) -> str:
    """The letter for an action, small for every other one, so that neighbours stay apart."""
    turns[one.op] += 1
    letter = _LETTERS.get(one.op, one.op)
    return (letter if turns[one.op] % 2 else letter.lower()) * width


def _legend(plan: Plan, timeline: Timeline, ranks: list[int], scale: _Scale) -> str:
    lines = [f"one column is {format_time(scale.seconds / scale.columns)}"]
    if not scale.named:
        lines[0] += "; letters alternate in case; a wider terminal shows names"
    if len(ranks) < len(used_ranks(timeline)):
        lines.append(
            f"one rank per stage is drawn, of {counted(len(timeline.actions.schedule), 'rank')}"
        )
    pairs = "P forward beside backward, " if has_pairs(timeline.actions.schedule) else ""
    shared = "< gather, > reduction, " if has_state_actions(plan) else ""
    lines.append(f"F forward, B backward, {pairs}~ gradient sync, {shared}+ optimizer, . idle")
    return "\n".join(lines)
