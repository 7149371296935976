"""A simulated step as a Chrome trace, which Perfetto and chrome://tracing open.

Each rank is a process. Its threads hold actions, gradient syncs with the optimizer step, idle time by
cause, gathers and reductions of sharded state, and the sends on each link. Arrows lead from a result to the action that awaited it. A counter
shows the rank's bytes by kind. Times are microseconds.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from autopart.records.plan import Plan, stage_ranks
from autopart.simulator.idle import Idle, idle_pieces
from autopart.simulator.memory import MemoryCurve, memory_over_time
from autopart.simulator.state_actions import has_state_actions, state_slices
from autopart.simulator.timeline import Timeline, optimizer_span, rank_spans, used_ranks

FORMAT = "autopart-trace"
ACTIONS, SYNCS, IDLE, SENDS = range(4)
"""Threads in each process. Sends over link number i are thread `SENDS` + i, and the last one is `messages_thread`."""

Event = dict[str, Any]
"""One entry in `traceEvents`, as the Trace Event Format defines it."""


def trace(plan: Plan, timeline: Timeline) -> bytes:
    """The trace as JSON: metadata first, then events sorted by time."""
    curves = memory_over_time(timeline, stage_ranks(plan), plan.prediction.stages)
    ranks, idle = used_ranks(timeline), idle_pieces(timeline)
    events = [
        *(e for rank in ranks for e in _rank_events(timeline, rank, idle[rank])),
        *(e for rank in ranks for e in _state_events(plan, timeline, rank)),
        *_send_events(timeline, overlap=plan.cluster.sends_overlap),
        *_arrows(timeline),
        *(e for rank in ranks for e in _memory_events(curves[rank], rank)),
    ]
    events.sort(key=lambda event: event["ts"])
    document = {
        "otherData": {"format": FORMAT, "makespan_seconds": timeline.makespan},
        "displayTimeUnit": "ms",
        "traceEvents": [*_names(plan, timeline), *events],
    }
    return msgspec.json.encode(document) + b"\n"


def _names(plan: Plan, timeline: Timeline) -> Iterator[Event]:
    used = used_ranks(timeline)
    threads = {ACTIONS: "actions", SYNCS: "syncs and update", IDLE: "idle"}
    if has_state_actions(plan):
        threads[messages_thread(timeline)] = "gathers and reductions"
    named: dict[int, dict[int, str]] = {rank: dict(threads) for rank in used}
    for place, (sender, receiver) in enumerate(timeline.actions.links):
        named[sender][SENDS + place] = f"sends to rank {receiver}"
    for rank in used:
        stages = [str(s) for s, own in enumerate(stage_ranks(plan)) if rank in own]
        title = f"rank {rank}, stage{'s' if len(stages) > 1 else ''} {', '.join(stages)}"
        yield named_event("process_name", rank, 0, name=title)
        yield named_event("process_sort_index", rank, 0, sort_index=rank)
        for thread, name in named[rank].items():
            yield named_event("thread_name", rank, thread, name=name)


def named_event(kind: str, rank: int, thread: int, **args: object) -> Event:
    """Metadata for a process or a thread: its name, or its place in the list."""
    return {"name": kind, "ph": "M", "ts": 0.0, "pid": rank, "tid": thread, "args": args}


def slice_event(
    name: str, category: str, rank: int, thread: int, start: float, end: float, **args: object
) -> Event:
    """An event that lasts from `start` to `end`, in seconds."""
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start * 1e6,
        "dur": (end - start) * 1e6,
        "pid": rank,
        "tid": thread,
        "args": args,
    }


def _rank_events(timeline: Timeline, rank: int, idle: Sequence[Idle]) -> Iterator[Event]:
    for span in rank_spans(timeline, rank):
        # Of an overlapped pair the first entries are its forward's.
        about = span.actions[0]._asdict()
        if len(span.actions) > 1:
            about |= {"beside": str(span.actions[1])}
        yield slice_event(span.name, span.op, rank, ACTIONS, span.start, span.end, **about)
    for sync, start, end in timeline.syncs[rank]:
        yield slice_event(f"sync {sync}", "sync", rank, SYNCS, start, end)
    start, end = optimizer_span(timeline, rank)
    if end > start:
        yield slice_event("optimizer step", "update", rank, SYNCS, start, end)
    for span in idle:
        yield slice_event(span.cause, "idle", rank, IDLE, span.start, span.end)


def messages_thread(timeline: Timeline) -> int:
    """The thread of gathers and reductions in each process."""
    return SENDS + len(timeline.actions.links)


def _state_events(plan: Plan, timeline: Timeline, rank: int) -> Iterator[Event]:
    """Gathers and reductions, in the words of torch."""
    thread = messages_thread(timeline)
    for one in state_slices(plan, timeline, rank):
        about: dict[str, object] = {"exposed_us": one.exposed * 1e6}
        if one.action is not None:
            about["beneath"] = str(one.action)
        kind = "gather" if one.op == "UNSHARD" else "reduction"
        yield slice_event(one.name, kind, rank, thread, one.start, one.end, **about)


def _send_events(timeline: Timeline, *, overlap: bool) -> Iterator[Event]:
    """Sends that overlap with compute. Sends without overlap are part of their actions."""
    actions, times = timeline.actions, timeline.times
    flat = [action for order in actions.schedule for action in order]
    for i, link in enumerate(actions.link.tolist()):
        if link >= 0 and overlap:
            sender, _ = actions.links[link]
            span = times.send_start[i], times.arrival[i]
            yield slice_event(f"{flat[i]}", "send", sender, SENDS + link, *span)


def _arrows(timeline: Timeline) -> Iterator[Event]:
    """Arrows from each action's end to the start of every action that awaited its result."""
    actions, times = timeline.actions, timeline.times
    needs, ranks = actions.need.tolist(), actions.rank.tolist()
    for i, need in enumerate(needs):
        if need < actions.num_actions:
            both = {"name": "awaits", "cat": "send", "id": i, "tid": ACTIONS}
            computed = min(times.end[need], times.send_start[need])
            yield {**both, "ph": "s", "ts": computed * 1e6, "pid": ranks[need]}
            yield {**both, "ph": "f", "bp": "e", "ts": times.start[i] * 1e6, "pid": ranks[i]}


def _memory_events(curve: MemoryCurve, rank: int) -> Iterator[Event]:
    times: Sequence[float] = curve.times.tolist()
    made = curve.gradients + curve.constant["gradients"]
    changes = {
        "stash": curve.stash,
        "workspace": curve.workspace,
        "messages": curve.messages,
        "gradients": made,
    }
    shared = {"whole weights": curve.gathered, "whole gradients": curve.reducing}
    changes |= {name: own for name, own in shared.items() if own.any()}
    columns = {name: own.tolist() for name, own in changes.items()}
    for place, time in enumerate(times):
        # Several changes at one time are one event: only the last of them counts.
        if place + 1 == len(times) or times[place + 1] > time:
            changing = {name: of[place] for name, of in columns.items()}
            args = {**curve.constant, **changing}
            yield {
                "name": "memory",
                "ph": "C",
                "ts": time * 1e6,
                "pid": rank,
                "tid": 0,
                "args": args,
            }
