"""What the ranks measured, put together stage by stage beside the prediction."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, get_args

from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.run_result import ActionTimes, RankStep, RunSlice, StageRun
from autopart.runtime.execution.clock import Slice
from autopart.runtime.execution.message_times import message_times
from autopart.runtime.execution.step_trace import StepTrace
from autopart.runtime.profiling.timing import summarize
from autopart.schedule import Op


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
    stash_bytes: Mapping[int, int] = {}
    """The most that each of its stages kept in the first step; empty where nobody counted."""
    tensor_bytes: int | None = None
    """As `RankStep` has it."""
    versions: int = 1
    """The most versions of its weights that the rank held at once."""
    update_losses: tuple[float, ...] = ()
    """Its share of the mean loss of each update, in a run without flushes."""


def losses_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """The mean loss of each step's batch."""
    shares = zip(*([step.loss for step in run.steps] for run in runs), strict=True)
    return tuple(sum(share for share in step if share is not None) for step in shares)


def update_losses_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """The mean loss of each update's microbatches; that of each step, where a step is an update."""
    shares = zip(*(run.update_losses for run in runs), strict=True)
    return tuple(map(sum, shares)) or losses_of(runs)


def step_times_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """Each step until its last rank was done."""
    times = zip(*([step.time for step in run.steps] for run in runs), strict=True)
    return tuple(map(max, times))


def settled(steps: Sequence[StepRun]) -> Sequence[StepRun]:
    """All steps but the first, in which memory is first allocated and connections are made."""
    return steps[1:] or steps


def stages_of(plan: Plan, runs: Sequence[RankRun], *, alone: bool = False) -> tuple[StageRun, ...]:
    """Each stage's medians beside its prediction; where each rank ran `alone`, nothing was sent."""
    traces = [[step.trace for step in settled(run.steps)] for run in runs]
    sends = message_times(schedule_of(plan), stage_ranks(plan), [] if alone else traces)
    return tuple(
        StageRun(
            ranks=stage.ranks,
            forward_time=_median_action(index, "F", mine),
            backward_time=_backward_time(index, mine),
            busy_time=_median(acting, partial(_busy_time, index)),
            wait_time=_median(acting, partial(_wait_time, index)),
            sync_time=_median(mine, lambda step: step.trace.sync_time),
            update_time=_median(mine, lambda step: step.update_time),
            peak_bytes=max(run.peak_bytes for run in mine),
            stash_bytes=_most_kept(index, mine),
            predicted=predicted,
            actions=_actions_of(index, mine),
            sends=sends[index],
        )
        for index, (stage, predicted) in enumerate(
            zip(plan.stages, plan.prediction.stages, strict=True)
        )
        for mine in [[runs[rank] for rank in stage.ranks]]
        # Of more replicas than microbatches some have none.
        for acting in [[run for run in mine if _slices_of(index, run.steps[-1])]]
    )


def rank_step(rank: int, run: RankRun) -> RankStep:
    """The medians of one rank."""

    def median(value: Callable[[StepRun], float]) -> float:
        return statistics.median(value(step) for step in settled(run.steps))

    return RankStep(
        rank=rank,
        acting_time=median(_acting_time),
        between_time=median(_between_time),
        waiting_time=median(_waiting_time),
        sync_time=median(lambda step: step.trace.sync_time),
        update_time=median(lambda step: step.update_time),
        peak_bytes=run.peak_bytes,
        tensor_bytes=run.tensor_bytes,
    )


def _most_kept(stage: int, runs: Iterable[RankRun]) -> int | None:
    counted = [run.stash_bytes[stage] for run in runs if stage in run.stash_bytes]
    return max(counted, default=None)


def share_of_core(runs: Iterable[RankRun]) -> float:
    """The part of the actions' time in which their threads had a core; 1 where nobody counted."""
    steps = [step.trace for run in runs for step in settled(run.steps)]
    slices = [s for trace in steps for s in trace.slices]
    took = sum(s.end - s.ready for s in slices)
    if took == 0.0 or any(s.core is None for s in slices):
        return 1.0
    return min(1.0, sum(s.core or 0.0 for s in slices) / took)


def last_slices(run: RankRun) -> tuple[RunSlice, ...]:
    """The actions of the last step."""
    return tuple(
        RunSlice(action=str(s.action), start=s.start, ready=s.ready, end=s.end)
        for s in run.steps[-1].trace.slices
    )


def _median(runs: Iterable[RankRun], value: Callable[[StepRun], float]) -> float:
    return statistics.median(value(step) for run in runs for step in settled(run.steps))


def _slices_with(stage: int, op: Op, runs: Iterable[RankRun]) -> list[Slice]:
    """All such actions in the steps that count."""
    return [
        s
        for run in runs
        for step in settled(run.steps)
        for s in step.trace.slices
        if s.action.op == op and s.action.stage == stage
    ]


def _actions_of(stage: int, runs: Sequence[RankRun]) -> tuple[ActionTimes, ...]:
    """The kinds of action that the stage runs."""
    found = {op: _slices_with(stage, op, runs) for op in get_args(Op)}
    return tuple(
        ActionTimes(
            op=op,
            time=times.median,
            spread=times.spread,
            count=len(slices),
            core_time=statistics.median(cores) if len(cores) == len(slices) else None,
        )
        for op, slices in found.items()
        if slices
        for times in [summarize([s.end - s.ready for s in slices])]
        for cores in [[s.core for s in slices if s.core is not None]]
    )


def _median_action(stage: int, op: Op, runs: Iterable[RankRun]) -> float:
    """0 where the stage runs no such action."""
    times = [s.end - s.ready for s in _slices_with(stage, op, runs)]
    return statistics.median(times) if times else 0.0


def _backward_time(stage: int, runs: Sequence[RankRun]) -> float:
    """Of a whole backward; of both halves together where the stage runs no whole ones."""
    whole = _median_action(stage, "B", runs)
    return whole or _median_action(stage, "I", runs) + _median_action(stage, "W", runs)


def _acting_time(step: StepRun) -> float:
    return sum(s.end - s.ready for s in step.trace.slices)


def _waiting_time(step: StepRun) -> float:
    return step.trace.blocked_time + sum(s.ready - s.start for s in step.trace.slices)


def _between_time(step: StepRun) -> float:
    """What the rank does between actions, without waiting."""
    spent = _acting_time(step) + _waiting_time(step) + step.trace.sync_time
    return max(0.0, step.trace.end - spent)


def _wait_time(stage: int, step: StepRun) -> float:
    """The waits before the stage's actions, with its share of the waits for sends."""
    mine = _slices_of(stage, step)
    blocked = step.trace.blocked_time * len(mine) / len(step.trace.slices)
    return blocked + sum(s.ready - s.start for s in mine)


def _busy_time(stage: int, step: StepRun) -> float:
    """For one microbatch: the time of the stage's actions and its share, by their number, of what
    the rank does between actions, without waiting."""
    mine = _slices_of(stage, step)
    between = _between_time(step) * len(mine) / len(step.trace.slices)
    own = sum(s.end - s.ready for s in mine) + between
    return own / sum(s.action.op == "F" for s in mine)


def _slices_of(stage: int, step: StepRun) -> list[Slice]:
    return [s for s in step.trace.slices if s.action.stage == stage]
