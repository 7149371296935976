"""Why a measured step differs from its prediction.

The plan's orders are simulated once per cause. Each simulation takes one more kind from the measurement:

    pace       all predicted seconds at the machine's pace in the run, where profile and run sampled it
    compute    median F and B seconds (or I and W); on a CPU with one thread their processor time
    cores      extra seconds for these actions while other threads and processes had the core
    overhead   seconds between a rank's actions, in place of the fixed cost
    sends      median transfer seconds for results that a rank waited for
    syncs      the shortest time that a rank spent in a sync; the other ranks waited for each other
    updates    the optimizer's step
    other      the rest of the measured step: actions that vary, cores that are shared

The simulated step's growth belongs to the cause. The causes add up to the whole difference. Where two causes
overlap, the earlier one counts more. Where ranks ran alone, only compute, cores and updates are known.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from autopart.fidelity.pace import at_pace, slowdowns
from autopart.records.plan import Plan, schedule_of
from autopart.records.prediction import StagePrediction, Sync
from autopart.records.run_result import RankStep, StageRun
from autopart.schedules.actions import Op
from autopart.schedules.encoding import OPS
from autopart.simulator.costs import action_time, pair_time
from autopart.simulator.timeline import RankSpan, simulate_with

Cause = Literal["pace", "compute", "cores", "overhead", "sends", "syncs", "updates", "other"]


class _Costs(NamedTuple):
    """The costs that a simulation of the plan takes."""

    stages: tuple[StagePrediction, ...]
    syncs: tuple[Sync, ...]
    overhead: float


def find_causes(
    plan: Plan, stages: Sequence[StageRun], ranks: Sequence[RankStep], step_time: float | None
) -> dict[Cause, float]:
    """Seconds that each cause adds to the predicted step.

    `step_time` is the measured step in seconds. It is None where ranks ran alone; `other` is then unknown.
    """
    found: dict[Cause, float] = {}
    before = plan.prediction.step_time
    for cause, costs in _measured_costs(plan, stages, ranks, alone=step_time is None):
        after = _simulated(plan, costs)
        found[cause] = after - before
        before = after
    if step_time is not None:
        found["other"] = step_time - before
    return found


def predicted_time(stage: StagePrediction, op: Op) -> float:
    """Predicted seconds for one action kind, without the fixed cost."""
    return float(action_time(stage, OPS.index(op)))


def predicted_compute(stages: Sequence[StagePrediction], spans: Sequence[RankSpan]) -> float:
    """Predicted seconds for actions and overlapped pairs, without the fixed costs."""
    compute = 0.0
    for span in spans:
        own = [stages[action.stage] for action in span.actions]
        if len(own) > 1:
            compute += float(pair_time(*own))
        else:
            compute += predicted_time(own[0], span.actions[0].op)
    return compute


def _measured_costs(
    plan: Plan, stages: Sequence[StageRun], ranks: Sequence[RankStep], *, alone: bool
) -> Iterator[tuple[Cause, _Costs]]:
    """The predicted costs; each further value takes one more kind from the measurement."""
    # One cause after the other, in the order of the module's table.
    costs = _Costs(plan.prediction.stages, plan.prediction.syncs, plan.cluster.action_overhead)
    if paces := slowdowns(plan, ranks):
        costs = _Costs(*at_pace(plan, ranks, paces))
        yield "pace", costs
    costs = costs._replace(stages=tuple(map(_on_core, costs.stages, stages)))
    yield "compute", costs
    costs = costs._replace(stages=tuple(map(_with_actions, costs.stages, stages)))
    yield "cores", costs
    if not alone:
        costs = costs._replace(overhead=_overhead(plan, ranks))
        yield "overhead", costs
        costs = costs._replace(stages=tuple(map(_with_sends, costs.stages, stages)))
        yield "sends", costs
        costs = costs._replace(syncs=_measured_syncs(plan, ranks))
        yield "syncs", costs
    yield "updates", costs._replace(stages=_with_updates(plan, costs.stages, ranks))


def _simulated(plan: Plan, costs: _Costs) -> float:
    return simulate_with(plan, *costs).makespan


def _on_core(predicted: StagePrediction, ran: StageRun) -> StagePrediction:
    had: dict[Op, float] = {
        one.op: one.time if one.core_time is None else one.core_time for one in ran.actions
    }
    return _with_times(predicted, had)


def _with_actions(predicted: StagePrediction, ran: StageRun) -> StagePrediction:
    return _with_times(predicted, {action.op: action.time for action in ran.actions})


def _with_times(predicted: StagePrediction, times: Mapping[Op, float]) -> StagePrediction:
    backward = times.get("B", times.get("I", 0.0) + times.get("W", 0.0))
    weight_grad = times.get("W", predicted.weight_grad_time)
    return msgspec.structs.replace(
        predicted,
        forward_time=times.get("F", predicted.forward_time),
        backward_time=backward,
        weight_grad_time=min(weight_grad, backward),
        split_time=0.0,
    )


def _overhead(plan: Plan, ranks: Sequence[RankStep]) -> float:
    """Mean seconds between two actions, over all ranks."""
    return sum(ran.between_time for ran in ranks) / sum(map(len, schedule_of(plan)))


def _with_sends(predicted: StagePrediction, ran: StageRun) -> StagePrediction:
    times = {send.op: send.time for send in ran.sends}
    back = times.get("B", times.get("I", predicted.send_back_time))
    on = times.get("F", predicted.send_time)
    return msgspec.structs.replace(predicted, send_time=on, send_back_time=back)


def _measured_syncs(plan: Plan, ranks: Sequence[RankStep]) -> tuple[Sync, ...]:
    """The syncs with measured seconds, which follow all actions.

    A rank in several syncs divides its time as predicted.
    """
    syncs = plan.prediction.syncs
    spent = {ran.rank: ran.sync_time for ran in ranks}
    expected = {rank: sum(s.time for s in syncs if rank in s.ranks) for rank in spent}

    def part(sync: Sync, rank: int) -> float:
        return spent[rank] * sync.time / expected[rank] if expected[rank] else 0.0

    return tuple(
        msgspec.structs.replace(sync, time=min(part(sync, rank) for rank in sync.ranks), parts=None)
        for sync in syncs
    )


def _with_updates(
    plan: Plan, stages: Sequence[StagePrediction], ranks: Sequence[RankStep]
) -> tuple[StagePrediction, ...]:
    """The stages with measured updates. A rank divides its update among its stages as predicted."""
    spent = {ran.rank: ran.update_time for ran in ranks}
    found: list[StagePrediction] = []
    for stage, own in zip(stages, plan.stages, strict=True):
        rank = next(rank for rank in own.ranks if rank in spent)
        on_rank = [s for s, other in zip(stages, plan.stages, strict=True) if rank in other.ranks]
        expected = sum(s.update_time for s in on_rank)
        share = stage.update_time / expected if expected else 1.0 / len(on_rank)
        found.append(msgspec.structs.replace(stage, update_time=spent[rank] * share))
    return tuple(found)
