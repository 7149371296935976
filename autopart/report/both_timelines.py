"""A predicted step and a measured step as one Chrome trace.

Each rank has two processes, one below the other: predicted and measured. The measured step is the last
step that was timed. Its gradient sums and its update last as long as their medians over all timed
steps. Where each rank ran alone, its step begins at 0.
"""

from collections.abc import Iterator

import msgspec

from autopart.records.plan import Plan
from autopart.records.run_result import OneDeviceResult, RankStep, RunResult, RunSlice
from autopart.report.trace import ACTIONS, FORMAT, IDLE, SYNCS, Event, named_event, slice_event
from autopart.schedules.actions import parse_action
from autopart.simulator.timeline import Timeline, rank_spans, simulate_plan

THREADS = {ACTIONS: "actions", SYNCS: "syncs and update", IDLE: "waiting"}


def both_timelines(plan: Plan, run: RunResult | OneDeviceResult) -> bytes:
    """The trace as JSON: metadata first, then events sorted by time."""
    timeline = simulate_plan(plan)
    ranks = {ran.rank: ran for ran in run.ranks if run.trace[ran.rank]}
    names = [event for rank in ranks for event in _names(rank)]
    events = [
        event
        for rank, ran in ranks.items()
        for event in (
            *_predicted(timeline, rank),
            *_measured(run.trace[rank], ran),
        )
    ]
    events.sort(key=lambda event: event["ts"])
    document = {
        "otherData": {"format": FORMAT, "makespan_seconds": timeline.makespan},
        "displayTimeUnit": "ms",
        "traceEvents": [*names, *events],
    }
    return msgspec.json.encode(document) + b"\n"


def _names(rank: int) -> Iterator[Event]:
    for process, kind in ((2 * rank, "predicted"), (2 * rank + 1, "measured")):
        yield named_event("process_name", process, 0, name=f"rank {rank}, {kind}")
        yield named_event("process_sort_index", process, 0, sort_index=process)
        for thread, name in THREADS.items():
            yield named_event("thread_name", process, thread, name=name)


def _predicted(timeline: Timeline, rank: int) -> Iterator[Event]:
    process = 2 * rank
    for span in rank_spans(timeline, rank):
        yield slice_event(span.name, span.op, process, ACTIONS, span.start, span.end)
    for sync, start, end in timeline.syncs[rank]:
        yield slice_event(f"sync {sync}", "sync", process, SYNCS, start, end)
    synced, done = timeline.sync_end[rank], timeline.rank_end[rank]
    if done > synced:
        yield slice_event("optimizer step", "update", process, SYNCS, synced, done)


def _measured(slices: tuple[RunSlice, ...], ran: RankStep) -> Iterator[Event]:
    process = 2 * ran.rank + 1
    for one in slices:
        op = parse_action(one.action).op
        yield slice_event(one.action, op, process, ACTIONS, one.ready, one.end)
        if one.ready > one.start:
            yield slice_event(f"for {one.action}", "waiting", process, IDLE, one.start, one.ready)
    # A run times gradient sums and the update, but not their beginning: they follow the last action.
    acted = slices[-1].end
    summed = acted + ran.sync_time
    if summed > acted:
        yield slice_event("gradient sums", "sync", process, SYNCS, acted, summed)
    yield slice_event("optimizer step", "update", process, SYNCS, summed, summed + ran.update_time)
