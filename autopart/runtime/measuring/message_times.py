"""Transfer times between ranks, from the sender's and the receiver's traces."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from autopart.records.run_result import SendTimes
from autopart.runtime.measuring.clock import MeasuredAction
from autopart.runtime.measuring.step_trace import StepTrace
from autopart.runtime.measuring.stopwatch import summarize
from autopart.schedules.actions import Action, Op, Schedule, StageRanks
from autopart.schedules.encoding import encode, every_action, takers

_ONE_CLOCK = 10.0
"""Largest difference, in seconds, between two ranks' step starts if they share a clock.

Different hosts' clocks count from their own starts and differ by more.
"""


def message_times(
    schedule: Schedule, stage_ranks: StageRanks, traces: Sequence[Sequence[StepTrace]]
) -> tuple[tuple[SendTimes, ...], ...]:
    """Summarize, for each stage, the seconds that its results travelled to other ranks.

    Only results for which the receiver waited count: there the transfer ended at `ready`. `traces`
    has one sequence for each rank, with one trace per step. Different hosts' clocks cannot be
    compared, so each step counts as begun on all hosts at once.
    """
    num_stages = len(stage_ranks)
    actions = encode(schedule, num_stages)
    each = every_action(actions.schedule)
    handovers = [(each[giver], each[taker]) for giver, taker in takers(actions).items()]
    found: defaultdict[tuple[int, Op], list[float]] = defaultdict(list)
    for step in zip(*traces, strict=True):
        # Step 1: put all actions of the step on one clock.
        ran = dict(_on_one_clock(step))
        # Step 2: a transfer is visible where the receiver already waited when the result was made.
        for giver, taker in handovers:
            made, needed = ran[giver], ran[taker]
            if needed.start <= made.end:
                found[giver.stage, giver.op].append(max(0.0, needed.ready - made.end))
    return tuple(
        tuple(_summed_up(op, times) for (at, op), times in sorted(found.items()) if at == stage)
        for stage in range(num_stages)
    )


def _on_one_clock(step: Sequence[StepTrace]) -> Iterator[tuple[Action, MeasuredAction]]:
    """Yield each action in the step with its times on the first rank's clock."""
    begun = [trace.begun for trace in step]
    is_one = max(begun) - min(begun) < _ONE_CLOCK
    for trace in step:
        late = trace.begun - begun[0] if is_one else 0.0
        for action, start, ready, end, _ in trace.slices:
            yield action, MeasuredAction(action, start + late, ready + late, end + late)


def _summed_up(op: Op, times: Sequence[float]) -> SendTimes:
    summary = summarize(times)
    return SendTimes(op=op, time=summary.median, spread=summary.spread, count=len(times))
