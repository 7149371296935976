"""The timeline of a step: one lane per rank, drawn by the page's own script.

A plotting library draws one shape per action, which takes seconds for a hundred thousand of them. The
script draws typed arrays on a canvas instead.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autopart.records.plan import Plan
from autopart.report.page.contents import PageContents, drawn_ranks
from autopart.report.page.html_text import Column, Figure, escape, legend_html, table_html
from autopart.report.page.packed import Packed, ticks
from autopart.schedules.actions import Action, parse_action
from autopart.simulator.idle import CAUSES, Cause, Idle, sums_by_cause
from autopart.simulator.state_actions import exposed_times, state_slices
from autopart.simulator.timeline import Timeline, optimizer_span, rank_spans
from autopart.text import counted
from autopart.units import format_share, format_time

WORK: dict[str, str] = {
    "F": "forward",
    "B": "backward",
    "I": "input-gradient half of a backward",
    "W": "weight-gradient half of a backward",
    "FB": "forward beside a backward",
    "sync": "gradient sync",
    "update": "optimizer step",
    "gather": "gather of weights that compute does not hide",
    "reduction": "reduction of gradients that compute does not hide",
    "wait": "waiting, as measured",
}
"""The busy kinds of a lane, and their words. `wait` is for measured lanes alone."""
MEANINGS: dict[Cause, str] = {
    "fill": "before the rank's first action",
    "drain": "after its last action, while others still run",
    "imbalance": "the rank has less work than the busiest one",
    "dependency latency": "it waits for a result, but others have no more work",
    "send": "a result is on its way",
    "lending": "stash moves to or from its partner",
    "sync": "others finish their syncs and updates",
    "memory cap": "a forward waits, since memory is full",
    "shared state": "another rank waits for its own gathers and reductions",
}
KINDS = (*WORK, *(f"idle {cause}" for cause in CAUSES))
"""The kinds of an item, by the number that the page's script knows."""
_NUMBER = {kind: place for place, kind in enumerate(KINDS)}


class Item(NamedTuple):
    """One stretch on a lane, in seconds since the step began."""

    start: float
    end: float
    kind: int
    stage: int = -1
    microbatch: int = -1
    other_stage: int = -1
    """The stage of the backward in an overlapped pair."""
    other_microbatch: int = -1


class Lane(NamedTuple):
    """One row of the timeline."""

    rank: int
    measured: bool
    items: tuple[Item, ...]


def lanes_of(contents: PageContents) -> list[Lane]:
    """The lanes in order; a measured lane stands below the predicted one of its rank."""
    measured = () if contents.measured is None else contents.measured.run.trace
    found: list[Lane] = []
    for rank in drawn_ranks(contents):
        found.append(Lane(rank, False, _predicted(contents, rank)))
        if rank < len(measured) and measured[rank]:
            found.append(Lane(rank, True, tuple(_measured(contents, rank))))
    return found


def _predicted(contents: PageContents, rank: int) -> tuple[Item, ...]:
    plan, timeline, idle = contents.plan, contents.timeline, contents.idle[rank]
    items = [Item(start, end, _NUMBER[f"idle {cause}"]) for start, end, cause in _joined(idle)]
    for span in rank_spans(timeline, rank):
        first, last = span.actions[0], span.actions[-1]
        other = (last.stage, last.microbatch) if len(span.actions) > 1 else (-1, -1)
        kind = _NUMBER[span.op]
        items.append(Item(span.start, span.end, kind, first.stage, first.microbatch, *other))
    items += [Item(start, end, _NUMBER["sync"]) for _, start, end in timeline.syncs[rank]]
    start, done = optimizer_span(timeline, rank)
    if done > start:
        items.append(Item(start, done, _NUMBER["update"]))
    items += _message_items(plan, timeline, rank)
    return tuple(sorted(items))


def _message_items(plan: Plan, timeline: Timeline, rank: int) -> Iterator[Item]:
    """Exposed gathers and reductions. Those of an action are drawn at the end of its compute."""
    until: dict[Action, float] = {}
    for one in reversed(state_slices(plan, timeline, rank)):
        kind = _NUMBER["gather" if one.op == "UNSHARD" else "reduction"]
        if one.action is None:
            yield Item(one.start, one.end, kind)
        elif one.exposed > 0:
            end = until.get(one.action, one.made)
            until[one.action] = end - one.exposed
            yield Item(end - one.exposed, end, kind, one.action.stage, one.action.microbatch)


def _joined(idle: Sequence[Idle]) -> Iterator[Idle]:
    """The idle stretches; neighbours with one cause are one stretch."""
    for cause, group in itertools.groupby(_with_runs(idle), key=lambda one: (one[0], one[1].cause)):
        own = [stretch for _, stretch in group]
        yield Idle(own[0].start, own[-1].end, cause[1])


def _with_runs(idle: Sequence[Idle]) -> Iterator[tuple[int, Idle]]:
    """Each stretch that has a length, with the number of its run; a run has no gap."""
    run, end = 0, 0.0
    for stretch in idle:
        if stretch.end > stretch.start:
            run += stretch.start > end
            end = stretch.end
            yield run, stretch


def _measured(contents: PageContents, rank: int) -> Iterator[Item]:
    assert contents.measured is not None
    run = contents.measured.run
    slices = run.trace[rank]
    for one in slices:
        action = parse_action(one.action)
        if action.op not in WORK:
            continue  # moves of stash run beside other actions
        if one.ready > one.start:
            yield Item(one.start, one.ready, _NUMBER["wait"], action.stage, action.microbatch)
        yield Item(one.ready, one.end, _NUMBER[action.op], action.stage, action.microbatch)
    # A run times gradient sums and the update, but not their beginning: they follow the last action.
    end = slices[-1].end
    for ran in run.ranks:
        if ran.rank == rank:
            for kind, seconds in (("sync", ran.sync_time), ("update", ran.update_time)):
                if seconds > 0:
                    yield Item(end, end + seconds, _NUMBER[kind])
                    end += seconds


def pack_lanes(contents: PageContents, packed: Packed) -> dict[str, object]:
    """Add the lanes' arrays to `packed`. Returns what the script needs besides."""
    lanes = lanes_of(contents)
    span = max((item.end for lane in lanes for item in lane.items), default=0.0)
    items = [item for lane in lanes for item in lane.items]
    starts = ticks([item.start for item in items], span)
    ends_at = ticks([item.end for item in items], span)
    ends = np.cumsum([len(lane.items) for lane in lanes])
    # Most stretches begin where the one before ends, and have one of few lengths: these compress to little.
    before = np.concatenate([[0], ends_at[:-1]]).astype(np.int64)
    before[ends[:-1]] = 0
    packed.add("gap", (starts - before).astype(np.int32))
    packed.add("length", ends_at - starts)
    packed.add("kind", np.array([item.kind for item in items], dtype=np.uint8))
    packed.add("stage", np.array([item.stage for item in items], dtype=np.int32))
    packed.add("microbatch", np.array([item.microbatch for item in items], dtype=np.int32))
    pairs = any(item.other_stage >= 0 for item in items)
    if pairs:
        packed.add("other_stage", np.array([i.other_stage for i in items], dtype=np.int32))
        packed.add(
            "other_microbatch", np.array([i.other_microbatch for i in items], dtype=np.int32)
        )
    return {
        "seconds": span,
        "kinds": [[kind, WORK.get(kind) or kind] for kind in KINDS],
        "meanings": {f"idle {cause}": MEANINGS[cause] for cause in CAUSES},
        "lanes": [[lane.rank, lane.measured] for lane in lanes],
        "ends": ends.tolist(),
    }


CONTROLS = """<div class="controls" role="group" aria-label="Zoom of the timeline">
<button type="button" data-zoom="in">Zoom in</button><button type="button" data-zoom="out">Zoom out</button>
<button type="button" data-zoom="left" aria-label="Earlier">←</button>
<button type="button" data-zoom="right" aria-label="Later">→</button>
<button type="button" data-zoom="all">Whole step</button></div>"""
HELP = (
    "Drag to move, Ctrl and the wheel or two fingers to zoom. With the keyboard: arrows go from action to "
    "action and from rank to rank, + and - zoom, 0 shows the whole step."
)


def timeline_figure(contents: PageContents) -> Figure:
    """The section with the timeline."""
    ranks = drawn_ranks(contents)
    drawing = (
        f'{CONTROLS}<div id="timeline-box"><canvas id="timeline-canvas" tabindex="0" role="application" '
        f'aria-label="Timeline of one step on {counted(len(ranks), "rank")}" '
        f'aria-describedby="timeline-help"></canvas></div>'
        f'<output id="timeline-said" aria-live="polite">Point at an action, or walk with the arrow keys.</output>'
        f'<p class="note" id="timeline-help">{escape(HELP)}</p>{_legend(contents)}'
    )
    return Figure(
        name="timeline",
        title="Timeline of a step",
        lead=_lead(contents, ranks),
        drawing=drawing,
        table=_table(contents, ranks),
    )


def _lead(contents: PageContents, ranks: Sequence[int]) -> str:
    used = sum(1 for order in contents.timeline.actions.schedule if order)
    few = "" if len(ranks) == used else f" One rank per stage is drawn, of {used}."
    return (
        f"Tall bars are work, named stage, action, microbatch: 2F0 is the forward of microbatch 0 on stage 2. "
        f"Low bars are idle time, coloured by its cause.{few}"
    )


def _legend(contents: PageContents) -> str:
    there = _kinds_of_work(contents)
    work = [
        (f"work-{kind.lower()}", meaning, meaning)
        for kind, meaning in WORK.items()
        if kind in there
    ]
    shares = _idle_shares(contents)
    idle = [
        (f"low idle-{cause.replace(' ', '-')}", f"{cause} {_share(shares[cause])}", MEANINGS[cause])
        for cause in sorted(CAUSES, key=lambda cause: -shares[cause])
        if shares[cause] > 0
    ]
    return legend_html("Work", work) + legend_html(
        "Idle time, as a share of all rank-seconds", idle
    )


def _kinds_of_work(contents: PageContents) -> set[str]:
    """The kinds of work on any lane."""
    timeline = contents.timeline
    ranks = drawn_ranks(contents)
    found = {span.op for rank in ranks for span in rank_spans(timeline, rank)}
    found |= {"sync" for rank in ranks if timeline.syncs[rank]}
    found |= {"update" for rank in ranks if timeline.rank_end[rank] > timeline.sync_end[rank]}
    for rank in ranks:
        shown = exposed_times(state_slices(contents.plan, timeline, rank))
        found |= {"gather"} if shown.total("UNSHARD") else set()
        found |= {"reduction"} if shown.total("REDUCE_GRAD") else set()
    return found | ({"wait", "update"} if contents.measured is not None else set())


def _share(share: float) -> str:
    return format_share(share) if share >= 5e-4 else "under 0.1 %"


def _idle_shares(contents: PageContents) -> dict[Cause, float]:
    used = [rank for rank, order in enumerate(contents.timeline.actions.schedule) if order]
    whole = contents.timeline.makespan * len(used) or 1.0
    sums = [sums_by_cause(contents.idle[rank]) for rank in used]
    return {cause: sum(one[cause] for one in sums) / whole for cause in CAUSES}


def _table(contents: PageContents, ranks: Sequence[int]) -> str:
    sums = {rank: sums_by_cause(contents.idle[rank]) for rank in ranks}
    causes: list[Cause] = [cause for cause in CAUSES if any(sums[rank][cause] for rank in ranks)]
    schedule, makespan = contents.timeline.actions.schedule, contents.timeline.makespan
    columns = [
        Column("rank"),
        Column("actions"),
        Column("busy"),
        *(Column(cause) for cause in causes),
    ]
    rows = [
        (
            rank,
            len(schedule[rank]),
            format_time(makespan - sum(sums[rank].values())),
            *(format_time(sums[rank][cause]) for cause in causes),
        )
        for rank in ranks
    ]
    return table_html(
        f"Busy and idle time of each rank in a step of {format_time(makespan)}", columns, rows
    )
