"""A step as lines of text, one rank a line, time running to the right."""

from collections import Counter
from statistics import median
from typing import NamedTuple

from rich.text import Text

from autopart.plan import Plan
from autopart.schedule import Action
from autopart.simulator import Timeline
from autopart.simulator.idle import CAUSES, idle_times
from autopart.simulator.timeline import rank_slices, used_ranks
from autopart.units import format_share, format_time

MOST_RANKS = 16
_STYLES = {"F": "cyan", "B": "green", "I": "green", "W": "yellow"}


class _Scale(NamedTuple):
    """How time becomes columns."""

    columns: int
    seconds: float
    """What all columns together stand for."""
    named: bool
    """Whether actions are wide enough to be named; else they are letters."""


def timeline_text(plan: Plan, timeline: Timeline, width: int) -> Text:
    """Draw `timeline` in `width` columns.

        rank 0  0F0- 0F1- ......... 0B0----- 0B1-----+
        rank 1  ..... 1F0- 1B0----- 1F1- 1B1----- ...+

    Where actions are too narrow for names, `FFFfffBBBbbb`: letters, capital and small in turn.
    Above `MOST_RANKS` ranks one rank of each stage is drawn.
    """
    ranks = _drawn_ranks(plan, timeline)
    margin = len(f"rank {max(ranks)}") + 2
    scale = _scale(timeline, ranks, max(width - margin, 10))
    text = Text(no_wrap=True, overflow="crop")
    for rank in ranks:
        text.append(f"rank {rank}".ljust(margin))
        text.append_text(_row(timeline, rank, scale))
        text.append("\n")
    return text.append(_legend(timeline, ranks, scale))


def idle_line(timeline: Timeline) -> str:
    """`idle 12.0 % of rank-seconds: fill 4.0 %, drain 8.0 %`, the largest cause first."""
    ranks = used_ranks(timeline)
    each = idle_times(timeline)
    total = timeline.makespan * len(ranks) or 1.0
    shares = {cause: sum(each[rank][cause] for rank in ranks) / total for cause in CAUSES}
    largest = sorted((c for c in CAUSES if shares[c] >= 5e-4), key=lambda c: -shares[c])
    named = ", ".join(f"{cause} {format_share(shares[cause])}" for cause in largest)
    share = format_share(sum(shares.values()))
    return f"idle {share} of rank-seconds" + (f": {named}" if named else "")


def _drawn_ranks(plan: Plan, timeline: Timeline) -> list[int]:
    busy = used_ranks(timeline)
    if len(busy) <= MOST_RANKS:
        return busy
    return [min(stage.ranks) for stage in plan.stages]


def _scale(timeline: Timeline, ranks: list[int], columns: int) -> _Scale:
    """Actions are named where half of the forwards have room for name and gap."""
    drawn = [piece for rank in ranks for piece in rank_slices(timeline, rank)]
    seconds = timeline.makespan or 1.0
    room = [
        (piece.end - piece.start) * columns / seconds - len(str(piece.action))
        for piece in drawn
        if piece.action.op == "F"
    ]
    return _Scale(columns, seconds, named=median(room) >= 1)


def _row(timeline: Timeline, rank: int, scale: _Scale) -> Text:
    row = Text("." * scale.columns, style="dim")
    slices = rank_slices(timeline, rank)
    for _, start, stop in timeline.syncs[rank]:
        sync = _span(start, stop, scale)
        row = _paint(row, sync, "~" * len(sync), "magenta")
    update = _span(timeline.sync_end[rank], timeline.rank_end[rank], scale)
    row = _paint(row, update, "+" * len(update), "")
    turns: Counter[str] = Counter()
    for action, start, stop in slices:
        span = _span(start, stop, scale)
        cell = _name(action, len(span)) if scale.named else _letters(action, len(span), turns)
        row = _paint(row, span, cell, _STYLES[action.op])
    return row


def _span(start: float, end: float, scale: _Scale) -> range:
    """The columns from `start` to `end` seconds; at least one where any time passes."""
    each = scale.seconds / scale.columns
    first = min(round(start / each), scale.columns - 1)
    last = min(max(round(end / each), first + 1), scale.columns)
    return range(first, last if end > start else first)


def _paint(row: Text, span: range, cell: str, style: str) -> Text:
    return Text.assemble(row[: span.start], (cell, style), row[span.stop :]) if span else row


def _name(action: Action, width: int) -> str:
    """The longest name of `action` that fits, drawn out over `width` columns, and a gap."""
    names = (str(action), f"{action.op}{action.microbatch}", action.op)
    name = next(name for name in names if len(name) <= width)
    return name if len(name) == width else name.ljust(width - 1, "-") + " "


def _letters(action: Action, width: int, turns: Counter[str]) -> str:
    """The letter of `action`, small for every second one, so that neighbours stay apart."""
    turns[action.op] += 1
    return (action.op if turns[action.op] % 2 else action.op.lower()) * width


def _legend(timeline: Timeline, ranks: list[int], scale: _Scale) -> str:
    lines = [f"a column is {format_time(scale.seconds / scale.columns)}"]
    if not scale.named:
        lines[0] += "; capital and small letters in turn, a wider terminal has room for names"
    if len(ranks) < len(used_ranks(timeline)):
        lines.append(f"one rank of each stage, of {len(timeline.actions.schedule)} ranks")
    lines.append("F forward, B backward, ~ gradient sync, + optimizer, . idle")
    return "\n".join(lines)
