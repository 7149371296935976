"""How long results were on their way between ranks, from the traces of both."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from autopart.run_result import SendTimes
from autopart.runtime.execution.clock import Slice
from autopart.runtime.execution.messages import backwards_of, consumer
from autopart.runtime.execution.step_trace import StepTrace
from autopart.runtime.profiling.timing import summarize
from autopart.schedule import Action, Op, Schedule, StageRanks

_ONE_CLOCK = 10.0
"""Seconds by which the starts of a step differ at most where the ranks' clocks are one; those of
different hosts, which count from their own starts, differ by more."""


def message_times(
    schedule: Schedule, stage_ranks: StageRanks, traces: Sequence[Sequence[StepTrace]]
) -> tuple[tuple[SendTimes, ...], ...]:
    """For each stage the ways of its results to other ranks, where those waited for them.

    `traces` are those of each rank, step by step. Between hosts a step counts as begun on all of
    them at once.
    """
    backwards, num_stages = backwards_of(schedule), len(stage_ranks)
    found: defaultdict[tuple[int, Op], list[float]] = defaultdict(list)
    for step in zip(*traces, strict=True):
        ran = {action: (rank, span) for rank, action, span in _on_one_clock(step)}
        for action, (rank, made) in ran.items():
            target = consumer(action, num_stages, backwards)
            if target is None or ran[target][0] == rank:
                continue
            needed = ran[target][1]
            if needed.start <= made.end:
                found[action.stage, action.op].append(max(0.0, needed.ready - made.end))
    return tuple(
        tuple(_summed_up(op, times) for (at, op), times in sorted(found.items()) if at == stage)
        for stage in range(num_stages)
    )


def _on_one_clock(step: Sequence[StepTrace]) -> Iterator[tuple[int, Action, Slice]]:
    """Rank, action and when it ran, of every action of the step."""
    begun = [trace.begun for trace in step]
    is_one = max(begun) - min(begun) < _ONE_CLOCK
    for rank, trace in enumerate(step):
        late = trace.begun - begun[0] if is_one else 0.0
        for action, start, ready, end, _ in trace.slices:
            yield rank, action, Slice(action, start + late, ready + late, end + late)


def _summed_up(op: Op, times: Sequence[float]) -> SendTimes:
    summary = summarize(times)
    return SendTimes(op=op, time=summary.median, spread=summary.spread, count=len(times))
