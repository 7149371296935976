"""How true a plan's prediction is: each figure beside what was measured.

Each rank's step is divided into the same parts on both sides, which add up to the step. Since a rank
waits for others, its parts do not say why a step is longer than predicted: `step_causes` does.
"""

import statistics
from collections.abc import Sequence
from typing import Annotated

import msgspec

from autopart.errors import RunError
from autopart.plan import Plan, StagePrediction
from autopart.run_result import OneDeviceResult, RankStep, RunResult, SendTimes, StageRun
from autopart.schedule import Op
from autopart.simulator import Timeline, simulate_plan
from autopart.simulator.timeline import rank_slices, used_ranks
from autopart.step_causes import Cause, find_causes, predicted_time
from autopart.units import Bytes, Count, Seconds

Error = Annotated[float, msgspec.Meta(description="predicted / measured - 1")]


class ActionFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of action of a stage, for one microbatch, without waiting or its fixed cost."""

    stage: Count
    op: Op
    predicted: Seconds
    measured: Seconds
    spread: Seconds
    """Interquartile range of what was measured."""
    core: Seconds | None
    """The median of what its thread had of a core, on a CPU with one thread."""
    error: Error


class SendFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way of one stage's results to the stage that waits for them."""

    stage: Count
    op: Op
    """Of the action that makes them: F sends on, B or I sends back."""
    predicted: Seconds
    measured: Seconds
    spread: Seconds
    error: Error


class RankParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a rank's step goes; the parts add up to it."""

    compute: Seconds
    overhead: Seconds
    """Between actions, without waiting."""
    waiting: Seconds
    """For results, with the way of those that it waits for."""
    sync: Seconds
    """Gradient sums, with waiting for them."""
    update: Seconds
    rest: float
    """Until the last rank is done; of measured medians also what they do not add up to."""


class RankFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's step and its bytes."""

    rank: Count
    stages: tuple[Count, ...]
    predicted: RankParts | None
    """None where the rank ran alone, as is `measured`."""
    measured: RankParts | None
    predicted_bytes: Bytes
    """Of tensors at the peak: the prediction without the framework's reserve."""
    measured_bytes: Bytes | None
    """Of tensors at the peak; None where they were not counted."""
    error: Error | None
    """Of the bytes."""


class CauseFidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one cause makes of the difference."""

    cause: Cause
    seconds: float
    """Measured more than predicted."""


class Fidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan's prediction held against a run of it."""

    model: str
    device: str
    one_device: bool
    """Whether each rank ran alone, with stand-ins for its neighbours."""
    predicted_step_time: Seconds
    step_time: Seconds | None
    """The median of the measured steps; None where each rank ran alone."""
    step_spread: Seconds | None
    error: Error | None
    """Of the step."""
    resimulated_step_time: Seconds
    """The plan's orders with all that was measured."""
    actions: tuple[ActionFidelity, ...]
    sends: tuple[SendFidelity, ...]
    ranks: tuple[RankFidelity, ...]
    causes: tuple[CauseFidelity, ...]
    memory: str
    """How bytes were counted."""
    notes: tuple[str, ...] = ()


def judge(plan: Plan, run: RunResult | OneDeviceResult) -> Fidelity:
    """Hold the plan's prediction against what a run of it measured."""
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
        resimulated_step_time=predicted + sum(t for c, t in causes.items() if c != "other"),
        actions=tuple(_actions(plan, run.stages)),
        sends=tuple(_sends(plan, run.stages)),
        ranks=_ranks(plan, run.ranks, step),
        causes=tuple(CauseFidelity(cause=c, seconds=time) for c, time in causes.items()),
        memory=TENSORS_COUNTED if any(r.tensor_bytes is not None for r in run.ranks) else "",
        notes=run.notes,
    )


TENSORS_COUNTED = "most bytes of tensors alive at once, without the framework's own"


def check_within(found: Fidelity, tolerance: float) -> None:
    """Raise RunError where a prediction is off by more than `tolerance`, a share: the step, or where
    ranks ran alone the time of an action; or where a rank held more than predicted by that share."""
    worst = _worst_time(found)
    if abs(worst[1]) > tolerance:
        raise RunError(
            f"the prediction of {worst[0]} is off by {worst[1]:+.1%}, more than {tolerance:.1%}; "
            "profile again on the machine as it is in a run, or give the cluster's own figures"
        )
    for rank in found.ranks:
        if rank.error is not None and rank.error < -tolerance:
            raise RunError(
                f"rank {rank.rank} held {rank.measured_bytes} bytes where {rank.predicted_bytes} "
                f"were predicted ({rank.error:+.1%}, more than {tolerance:.1%} off)"
            )


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


def _actions(plan: Plan, stages: Sequence[StageRun]) -> list[ActionFidelity]:
    return [
        ActionFidelity(
            stage=place,
            op=action.op,
            predicted=predicted,
            measured=action.time,
            spread=action.spread,
            core=action.core_time,
            error=_error(predicted, action.time),
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
    """The predicted peak of a rank, without what is no tensor."""
    own = [s for s, stage in enumerate(plan.stages) if rank in stage.ranks]
    reserve = max(plan.prediction.stages[s].memory.reserve for s in own)
    return plan.prediction.rank_peak_bytes[rank] - reserve


def _predicted_parts(plan: Plan, timeline: Timeline, rank: int) -> RankParts:
    slices, overhead = rank_slices(timeline, rank), plan.cluster.action_overhead
    stages = plan.prediction.stages
    compute = sum(predicted_time(stages[a.stage], a.op) for a, _, _ in slices)
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
