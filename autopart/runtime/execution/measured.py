"""What the ranks measured, put together stage by stage beside the prediction."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from autopart.plan import Plan
from autopart.run_result import RunSlice, StageRun
from autopart.runtime.execution.executor import StepTrace


class StepRun(NamedTuple):
    """One step on one rank; seconds."""

    loss: float | None
    """The rank's share of the batch's mean loss, where it has the last stage."""
    trace: StepTrace
    time: float
    """From the moment that all ranks stood ready to the end of this rank's update."""
    update_time: float


class RankRun(NamedTuple):
    """All steps on one rank."""

    steps: tuple[StepRun, ...]
    peak_bytes: int


def losses_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """The mean loss of each step's batch."""
    shares = zip(*([step.loss for step in run.steps] for run in runs), strict=True)
    return tuple(sum(share for share in step if share is not None) for step in shares)


def step_times_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """Each step until its last rank was done."""
    times = zip(*([step.time for step in run.steps] for run in runs), strict=True)
    return tuple(map(max, times))


def settled(steps: Sequence[StepRun]) -> Sequence[StepRun]:
    """All steps but the first, in which memory is first allocated and connections are made."""
    return steps[1:] or steps


def stages_of(plan: Plan, runs: Sequence[RankRun]) -> tuple[StageRun, ...]:
    """Each stage's medians beside its prediction."""
    return tuple(
        StageRun(
            ranks=stage.ranks,
            forward_time=_median_action("F", mine),
            backward_time=_median_action("B", mine),
            busy_time=_median(mine, _busy_time),
            wait_time=_median(mine, _wait_time),
            sync_time=_median(mine, lambda step: step.trace.sync_time),
            update_time=_median(mine, lambda step: step.update_time),
            peak_bytes=max(run.peak_bytes for run in mine),
            predicted=predicted,
        )
        for stage, predicted in zip(plan.stages, plan.prediction.stages, strict=True)
        for mine in [[runs[rank] for rank in stage.ranks]]
    )


def share_of_core(runs: Iterable[RankRun]) -> float:
    """The part of the actions' time in which their threads had a core; 1 where nobody counted."""
    steps = [step.trace for run in runs for step in settled(run.steps)]
    took = sum(s.end - s.ready for trace in steps for s in trace.slices)
    if took == 0.0 or any(trace.core_time is None for trace in steps):
        return 1.0
    return min(1.0, sum(trace.core_time or 0.0 for trace in steps) / took)


def last_slices(run: RankRun) -> tuple[RunSlice, ...]:
    """The actions of the last step."""
    return tuple(
        RunSlice(action=str(s.action), start=s.start, ready=s.ready, end=s.end)
        for s in run.steps[-1].trace.slices
    )


def _median(runs: Iterable[RankRun], value: Callable[[StepRun], float]) -> float:
    return statistics.median(value(step) for run in runs for step in settled(run.steps))


def _median_action(op: str, runs: Iterable[RankRun]) -> float:
    return statistics.median(
        s.end - s.ready
        for run in runs
        for step in settled(run.steps)
        for s in step.trace.slices
        if s.action.op == op
    )


def _wait_time(step: StepRun) -> float:
    return step.trace.blocked_time + sum(s.ready - s.start for s in step.trace.slices)


def _busy_time(step: StepRun) -> float:
    """For one microbatch: the time of the step's actions and what lies between, without waiting."""
    num_forwards = sum(s.action.op == "F" for s in step.trace.slices)
    whole = step.trace.end - step.trace.sync_time
    return max(0.0, whole - _wait_time(step)) / num_forwards
