"""Each predicted figure beside its measurement.

Each rank's step has the same parts on both sides, and the parts add up to the step. A rank waits for other
ranks, so its parts do not explain a long step. `autopart.fidelity.causes` explains it.
"""

import statistics
from collections.abc import Sequence
from typing import Annotated

import msgspec

from autopart.errors import RunError
from autopart.fidelity.causes import Cause, find_causes, predicted_compute, predicted_time
from autopart.fidelity.pace import compare_pace, stage_factors
from autopart.records.pace import PaceComparison
from autopart.records.plan import Plan
from autopart.records.prediction import StagePrediction
from autopart.records.run_result import OneDeviceResult, RankStep, RunResult, SendTimes, StageRun
from autopart.schedules.actions import Op
from autopart.simulator.timeline import Timeline, rank_slices, rank_spans, simulate_plan, used_ranks
from autopart.text import counted
from autopart.units import Bytes, Count, Seconds

Error = Annotated[float, msgspec.Meta(description="predicted / measured - 1")]


class ActionFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds for one action kind on a stage, per microbatch, without waiting and without the fixed
    cost."""

    stage: Count
    op: Op
    predicted: Seconds
    measured: Seconds
    spread: Seconds
    """Interquartile range over the measured seconds."""
    core: Seconds | None
    """The action's median processor time in seconds; measured on a CPU with one thread, else None.
    """
    error: Error
    error_at_pace: Error | None = None
    """The error at the run's pace and share of cores; null where it is unknown."""


class SendFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds from the end of an action until its result reaches the stage that waits for it."""

    stage: Count
    op: Op
    """The action that makes the result: F sends to the next stage, B or I to the previous one."""
    predicted: Seconds
    measured: Seconds
    spread: Seconds
    error: Error


class RankParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts in a rank's step, in seconds; they add up to the step."""

    compute: Seconds
    overhead: Seconds
    """Seconds between actions, without waiting."""
    waiting: Seconds
    """Seconds spent waiting for results, transfers included."""
    sync: Seconds
    """Gradient sync seconds, waiting included."""
    update: Seconds
    rest: float
    """Seconds until the last rank is done; for measured medians also their sum's remainder."""


class RankFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's step and peak bytes."""

    rank: Count
    stages: tuple[Count, ...]
    predicted: RankParts | None
    """The predicted step parts; None where the rank ran alone. The same holds for `measured`."""
    measured: RankParts | None
    predicted_bytes: Bytes
    """Predicted tensor bytes at the peak: the predicted peak without the framework's reserve."""
    measured_bytes: Bytes | None
    """Measured tensor bytes at the peak; None where tensors were not counted."""
    error: Error | None
    """The error in the peak bytes."""


class CauseFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The seconds that one cause adds to the step."""

    cause: Cause
    seconds: float
    """Measured seconds minus predicted seconds."""


class Fidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan's prediction, compared with a run."""

    model: str
    device: str
    one_device: bool
    """Whether each rank ran alone, with fake neighbours."""
    predicted_step_time: Seconds
    step_time: Seconds | None
    """Median step seconds; None where each rank ran alone."""
    step_spread: Seconds | None
    error: Error | None
    """The error in the step time."""
    pace: PaceComparison | None = None
    """The run's pace beside the profile's; null where the run sampled none."""
    resimulated_step_time: Seconds
    """The makespan of the plan's orders, simulated with all measured seconds."""
    actions: tuple[ActionFidelity, ...]
    sends: tuple[SendFidelity, ...]
    ranks: tuple[RankFidelity, ...]
    causes: tuple[CauseFidelity, ...]
    memory: str
    """The method by which bytes were counted."""
    notes: tuple[str, ...] = ()


def with_stages(plan: Plan, stages: tuple[StagePrediction, ...]) -> Plan:
    """The plan with other predicted stages, and with the step that they make."""
    prediction = msgspec.structs.replace(plan.prediction, stages=stages)
    other = msgspec.structs.replace(plan, prediction=prediction)
    step_time = simulate_plan(other).makespan
    prediction = msgspec.structs.replace(prediction, step_time=step_time)
    return msgspec.structs.replace(plan, prediction=prediction)


def judge(plan: Plan, run: RunResult | OneDeviceResult) -> Fidelity:
    """Compare a plan's prediction with a run's measurements."""
    alone = isinstance(run, OneDeviceResult)
    times = () if isinstance(run, OneDeviceResult) else run.step_times[1:] or run.step_times
    step = statistics.median(times) if times else None
    predicted = plan.prediction.step_time
    causes = find_causes(plan, run.stages, run.ranks, step)
    return Fidelity(
        model=run.model,
        device=run.device,
        one_device=alone,
        predicted_step_time=predicted,
        step_time=step,
        step_spread=_spread(times) if times else None,
        error=None if step is None else predicted / step - 1.0,
        pace=compare_pace(plan, run.ranks, predicted, step),
        resimulated_step_time=predicted + sum(t for c, t in causes.items() if c != "other"),
        actions=tuple(_actions(plan, run.stages, run.ranks)),
        sends=tuple(_sends(plan, run.stages)),
        ranks=_ranks(plan, run.ranks, step),
        causes=tuple(CauseFidelity(cause=c, seconds=time) for c, time in causes.items()),
        memory=TENSORS_COUNTED if any(r.tensor_bytes is not None for r in run.ranks) else "",
        notes=run.notes,
    )


TENSORS_COUNTED = "most bytes of tensors alive at once, without the framework's own"


def check_within(found: Fidelity, tolerance: float) -> None:
    """Raise RunError where a prediction is off by more than `tolerance`, a share.

    The step time counts, or each action's time where ranks ran alone. A rank's bytes count only
    where the measurement exceeds the prediction.
    """
    worst = _worst_time(found)
    if abs(worst[1]) > tolerance:
        raise RunError(
            f"the prediction of {worst[0]} is off by {worst[1]:+.1%}{_paced(found)}, more than {tolerance:.1%}; "
            "profile again on the machine as it is in a run, or give the cluster's own figures"
        )
    for rank in found.ranks:
        used, error = rank.measured_bytes, rank.error
        if used is not None and error is not None and error < -tolerance:
            raise RunError(
                f"rank {rank.rank} used {counted(used, 'byte')} and {rank.predicted_bytes} were "
                f"predicted ({error:+.1%}, more than {tolerance:.1%} off)"
            )


def _paced(found: Fidelity) -> str:
    if found.pace is None or found.pace.error is None:
        return ""
    return f" ({found.pace.error:+.1%} at the run's pace)"


def _worst_time(found: Fidelity) -> tuple[str, float]:
    if found.error is not None:
        return "the step", found.error
    named = [(f"{action.op} on stage {action.stage}", action.error) for action in found.actions]
    return max(named, key=lambda one: abs(one[1]))


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low


def _actions(
    plan: Plan, stages: Sequence[StageRun], ranks: Sequence[RankStep]
) -> list[ActionFidelity]:
    factors = stage_factors(plan, ranks)
    return [
        ActionFidelity(
            stage=place,
            op=action.op,
            predicted=predicted,
            measured=action.time,
            spread=action.spread,
            core=action.core_time,
            error=_error(predicted, action.time),
            error_at_pace=None if not factors else _error(predicted * factors[place], action.time),
        )
        for place, stage in enumerate(stages)
        for action in stage.actions
        for predicted in [predicted_time(plan.prediction.stages[place], action.op)]
    ]


def _sends(plan: Plan, stages: Sequence[StageRun]) -> list[SendFidelity]:
    return [
        SendFidelity(
            stage=place,
            op=send.op,
            predicted=predicted,
            measured=send.time,
            spread=send.spread,
            error=_error(predicted, send.time),
        )
        for place, stage in enumerate(stages)
        for send in stage.sends
        for predicted in [_predicted_send(plan.prediction.stages[place], send)]
    ]


def _predicted_send(stage: StagePrediction, send: SendTimes) -> float:
    return stage.send_time if send.op == "F" else stage.send_back_time


def _error(predicted: float, measured: float) -> float:
    return predicted / measured - 1.0 if measured else 0.0


def _ranks(
    plan: Plan, ranks: Sequence[RankStep], step_time: float | None
) -> tuple[RankFidelity, ...]:
    timeline = simulate_plan(plan)
    return tuple(
        RankFidelity(
            rank=ran.rank,
            stages=tuple(s for s, stage in enumerate(plan.stages) if ran.rank in stage.ranks),
            predicted=None if step_time is None else _predicted_parts(plan, timeline, ran.rank),
            measured=None if step_time is None else _measured_parts(ran, step_time),
            predicted_bytes=expected,
            measured_bytes=ran.tensor_bytes,
            error=None if ran.tensor_bytes is None else _error(expected, ran.tensor_bytes),
        )
        for ran in ranks
        if ran.rank in used_ranks(timeline)
        for expected in [_tensor_bytes(plan, ran.rank)]
    )


def _tensor_bytes(plan: Plan, rank: int) -> int:
    """A rank's predicted peak in bytes, without the framework's reserve."""
    own = [s for s, stage in enumerate(plan.stages) if rank in stage.ranks]
    reserve = max(plan.prediction.stages[s].memory.reserve for s in own)
    return plan.prediction.rank_peak_bytes[rank] - reserve


def _predicted_parts(plan: Plan, timeline: Timeline, rank: int) -> RankParts:
    slices, overhead = rank_slices(timeline, rank), plan.cluster.action_overhead
    stages = plan.prediction.stages
    compute = predicted_compute(stages, rank_spans(timeline, rank))
    acted = slices[-1].end
    sync, done = timeline.sync_end[rank] - acted, timeline.rank_end[rank]
    return RankParts(
        compute=compute,
        overhead=overhead * len(slices),
        waiting=max(0.0, acted - compute - overhead * len(slices)),
        sync=sync,
        update=done - timeline.sync_end[rank],
        rest=timeline.makespan - done,
    )


def _measured_parts(ran: RankStep, step_time: float) -> RankParts:
    acted = ran.acting_time + ran.between_time + ran.waiting_time
    return RankParts(
        compute=ran.acting_time,
        overhead=ran.between_time,
        waiting=ran.waiting_time,
        sync=ran.sync_time,
        update=ran.update_time,
        rest=step_time - acted - ran.sync_time - ran.update_time,
    )
