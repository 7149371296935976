"""Combines all ranks' measurements into results per stage and per rank."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, get_args

import torch

from autopart.records.expert_load import LayerLoad
from autopart.records.pace import Pace
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.run_result import ActionTimes, RankStep, RunSlice, StageRun
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.measuring.clock import MeasuredAction
from autopart.runtime.measuring.message_times import message_times
from autopart.runtime.measuring.step_trace import StepTrace
from autopart.runtime.measuring.stopwatch import summarize
from autopart.runtime.sharding.context.expert_loads import ExpertLoads, LoadSum, loads_of
from autopart.schedules.actions import Op
from autopart.text import counted


class StepRun(NamedTuple):
    """One step on one rank; times in seconds."""

    loss: float | None
    """The rank's share of the batch's mean loss; None without the last stage."""
    trace: StepTrace
    time: float
    """Seconds from the common start of all ranks to the end of this rank's update."""
    update_time: float
    """Seconds for the optimizer's step, and for a tensor group's sums of partial gradients."""


class RankRun(NamedTuple):
    """All steps on one rank."""

    steps: tuple[StepRun, ...]
    peak_bytes: int
    """Peak memory, as `RunResult.memory` describes."""
    stash_bytes: Mapping[int, int] = {}
    """Largest stash by stage, in the first step; empty if it was not counted."""
    tensor_bytes: int | None = None
    """Most tensor bytes alive in the step that counts them; None without such a step."""
    versions: Mapping[int, int] = {}
    """By stage the most weight versions in the rank's memory at once, in a run without flushes."""
    pace: Pace | None = None
    """The machine's pace before, between and after the steps."""
    update_losses: tuple[float, ...] = ()
    """The rank's share of each update's mean loss, in a run without flushes."""
    loads: tuple[LoadSum, ...] = ()
    """The imbalance of its expert ranks over all microbatches; empty where they exchange no entries."""


def loads_of_run(plan: Plan, runs: Iterable[RankRun]) -> tuple[LayerLoad, ...]:
    """The imbalance of each layer over all microbatches of all replicas, in the order of the stages."""
    together = ExpertLoads()
    for run in runs:
        together.add(run.loads)
    place = {name: at for at, name in enumerate(la for stage in plan.stages for la in stage.layers)}
    return tuple(sorted(loads_of(together.sums()), key=lambda one: (place[one.layer], one.expert)))


def losses_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """Mean loss per step."""
    shares = zip(*([step.loss for step in run.steps] for run in runs), strict=True)
    return tuple(sum(share for share in step if share is not None) for step in shares)


def update_losses_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """Mean loss per update; per step if each step is one update."""
    shares = zip(*(run.update_losses for run in runs), strict=True)
    return tuple(map(sum, shares)) or losses_of(runs)


def step_times_of(runs: Sequence[RankRun]) -> tuple[float, ...]:
    """Seconds per step, until the last rank is done."""
    times = zip(*([step.time for step in run.steps] for run in runs), strict=True)
    return tuple(map(max, times))


def settled(steps: Sequence[StepRun]) -> Sequence[StepRun]:
    """All steps except the first, which allocates memory and opens connections."""
    return steps[1:] or steps


def stages_of(plan: Plan, runs: Sequence[RankRun], *, alone: bool = False) -> tuple[StageRun, ...]:
    """Medians per stage, next to the stage's prediction. `alone`: ranks ran alone, without
    messages."""
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
        # With more replicas than microbatches, some replicas run no action.
        for acting in [[run for run in mine if _slices_of(index, run.steps[-1])]]
    )


def rank_step(rank: int, run: RankRun) -> RankStep:
    """Medians for one rank, over all steps except the first."""

    def median(value: Callable[[StepRun], float]) -> float:
        return statistics.median(value(step) for step in settled(run.steps))

    return RankStep(
        rank=rank,
        acting_time=median(_acting_time),
        between_time=median(_between_time),
        waiting_time=median(_waiting_time),
        sync_time=median(lambda step: step.trace.sync_time),
        hidden_sync_time=_hidden_sync_time(run),
        update_time=median(lambda step: step.update_time),
        peak_bytes=run.peak_bytes,
        tensor_bytes=run.tensor_bytes,
        pace=run.pace,
        core_share=share_of_core([run]),
    )


def _hidden_sync_time(run: RankRun) -> float | None:
    """Median seconds in which sums ran beside actions; None where no step had such sums."""
    hidden = [
        max(0.0, step.trace.sums_time - step.trace.sync_time)
        for step in settled(run.steps)
        if step.trace.sums_time is not None
    ]
    return statistics.median(hidden) if hidden else None


def _most_kept(stage: int, runs: Iterable[RankRun]) -> int | None:
    counted = [run.stash_bytes[stage] for run in runs if stage in run.stash_bytes]
    return max(counted, default=None)


def run_notes(
    runs: Sequence[RankRun], settings: RunSettings, degrees: Sequence[int]
) -> tuple[str, ...]:
    """Conditions that a reader of the times should know; `degrees` are the ranks' tensor degrees."""
    notes: list[str] = []
    few, many = min(degrees), max(degrees)
    if many > 1:
        size = (
            counted(few, "process", "processes")
            if few == many
            else f"{few} to {counted(many, 'process', 'processes')}"
        )
        notes.append(
            f"each rank is a tensor group of {size}; times and bytes are its first one's, "
            "with the group's collectives in actions and updates"
        )
    if settings.autocast:
        notes.append("under autocast to bfloat16, which the prediction does not include")
    if settings.compile:
        notes.append("each stage ran under torch's compiler; predict it with profile --compile")
    if settings.backend == "torch":
        notes.append(
            "run by torch's own schedules: time between actions counts as waiting, and one receive "
            "buffer per microbatch adds to the predicted peak"
        )
    if len(runs[0].steps) == 1:
        notes.append("one step only: its time includes connections and first allocations")
    wild = [step for step, loss in enumerate(losses_of(runs), 1) if not math.isfinite(loss)]
    if wild:
        notes.append(
            f"the loss is NaN or infinite from step {wild[0]} on: the times count, the training does "
            "not; check data, --lr and start values"
        )
    return tuple(notes)


def device_name(device: torch.device) -> str:
    """cpu, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def share_of_core(runs: Iterable[RankRun]) -> float:
    """Share of the actions' time in which their threads had a core; 1 if it was not counted."""
    steps = [step.trace for run in runs for step in settled(run.steps)]
    slices = [s for trace in steps for s in trace.slices]
    took = sum(s.end - s.ready for s in slices)
    if took == 0.0 or any(s.core is None for s in slices):
        return 1.0
    return min(1.0, sum(s.core or 0.0 for s in slices) / took)


def last_slices(run: RankRun) -> tuple[RunSlice, ...]:
    """The last step's actions."""
    return tuple(
        RunSlice(action=str(s.action), start=s.start, ready=s.ready, end=s.end)
        for s in run.steps[-1].trace.slices
    )


def _median(runs: Iterable[RankRun], value: Callable[[StepRun], float]) -> float:
    return statistics.median(value(step) for run in runs for step in settled(run.steps))


def _slices_with(stage: int, op: Op, runs: Iterable[RankRun]) -> list[MeasuredAction]:
    """One stage's actions with operation `op`, in all steps that count."""
    return [
        s
        for run in runs
        for step in settled(run.steps)
        for s in step.trace.slices
        if s.action.op == op and s.action.stage == stage
    ]


def _actions_of(stage: int, runs: Sequence[RankRun]) -> tuple[ActionTimes, ...]:
    """Times for each operation that the stage runs."""
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
    """Median seconds for one operation; 0 if the stage does not run it."""
    times = [s.end - s.ready for s in _slices_with(stage, op, runs)]
    return statistics.median(times) if times else 0.0


def _backward_time(stage: int, runs: Sequence[RankRun]) -> float:
    """Median seconds per backward: B, or I plus W if the stage splits its backwards."""
    whole = _median_action(stage, "B", runs)
    return whole or _median_action(stage, "I", runs) + _median_action(stage, "W", runs)


def _acting_time(step: StepRun) -> float:
    return sum(s.end - s.ready for s in step.trace.slices)


def _waiting_time(step: StepRun) -> float:
    return step.trace.blocked_time + sum(s.ready - s.start for s in step.trace.slices)


def _between_time(step: StepRun) -> float:
    """Seconds between actions, without waiting."""
    spent = _acting_time(step) + _waiting_time(step) + step.trace.sync_time
    return max(0.0, step.trace.end - spent)


def _wait_time(stage: int, step: StepRun) -> float:
    """Waiting seconds before the stage's actions, plus its share in waits for sends."""
    mine = _slices_of(stage, step)
    blocked = step.trace.blocked_time * len(mine) / len(step.trace.slices)
    return blocked + sum(s.ready - s.start for s in mine)


def _busy_time(stage: int, step: StepRun) -> float:
    """Busy time per microbatch: the stage's actions, plus its share in the time between actions.

    Stages on one rank share the time between actions by their number of actions.
    """
    mine = _slices_of(stage, step)
    between = _between_time(step) * len(mine) / len(step.trace.slices)
    own = sum(s.end - s.ready for s in mine) + between
    return own / sum(s.action.op == "F" for s in mine)


def _slices_of(stage: int, step: StepRun) -> list[MeasuredAction]:
    return [s for s in step.trace.slices if s.action.stage == stage]
