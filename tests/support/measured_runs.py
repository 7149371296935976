"""Runs that match a plan's prediction exactly, or except in one respect."""

import msgspec

from autopart.fidelity.compare import judge
from autopart.records.plan import Plan
from autopart.records.run_result import (
    ActionTimes,
    RankStep,
    RunResult,
    RunSlice,
    SendTimes,
    StageRun,
)
from autopart.simulator.timeline import rank_slices, simulate_plan, used_ranks


def as_predicted(plan: Plan, **changes: object) -> RunResult:
    """A run in which every figure is the one that `plan` predicts."""
    timeline, overhead = simulate_plan(plan), plan.cluster.action_overhead
    stages = tuple(
        StageRun(
            ranks=stage.ranks,
            forward_time=predicted.forward_time,
            backward_time=predicted.backward_time,
            busy_time=predicted.busy_time,
            wait_time=0.0,
            sync_time=0.0,
            update_time=predicted.update_time,
            peak_bytes=predicted.peak_bytes,
            predicted=predicted,
            actions=(
                ActionTimes(op="F", time=predicted.forward_time, spread=0.0, count=4),
                ActionTimes(op="B", time=predicted.backward_time, spread=0.0, count=4),
            ),
            sends=tuple(
                SendTimes(op=op, time=time, spread=0.0, count=4)
                for op, time in (("F", predicted.send_time), ("B", predicted.send_back_time))
                if time
            ),
        )
        for stage, predicted in zip(plan.stages, plan.prediction.stages, strict=True)
    )
    ranks: list[RankStep] = []
    for rank in used_ranks(timeline):
        slices = rank_slices(timeline, rank)
        own = [plan.prediction.stages[action.stage] for action, _, _ in slices]
        acting = sum(
            stage.forward_time if action.op == "F" else stage.backward_time
            for stage, (action, _, _) in zip(own, slices, strict=True)
        )
        between = overhead * len(slices)
        ranks.append(
            RankStep(
                rank=rank,
                acting_time=acting,
                between_time=between,
                waiting_time=max(0.0, slices[-1].end - acting - between),
                sync_time=timeline.sync_end[rank] - slices[-1].end,
                update_time=timeline.rank_end[rank] - timeline.sync_end[rank],
                peak_bytes=1 << 30,
                tensor_bytes=plan.prediction.rank_peak_bytes[rank],
            )
        )
    result = RunResult(
        model="model.py",
        device="cpu",
        backend="gloo",
        dtype="float32",
        optimizer="adamw",
        num_ranks=len(plan.orders),
        num_microbatches=plan.num_microbatches,
        microbatch_size=plan.microbatch_size,
        losses=(1.0, 0.5),
        step_times=(9.0, timeline.makespan),
        step_time=timeline.makespan,
        predicted_step_time=plan.prediction.step_time,
        error=0.0,
        stages=stages,
        memory="by hand",
        ranks=tuple(ranks),
        trace=tuple(
            tuple(
                RunSlice(action=str(action), start=start, ready=start, end=end)
                for action, start, end in rank_slices(timeline, rank)
            )
            for rank in range(len(plan.orders))
        ),
    )
    return msgspec.structs.replace(result, **changes)


def causes_of(plan: Plan, run: RunResult) -> dict[str, float]:
    """Seconds by cause."""
    return {one.cause: one.seconds for one in judge(plan, run).causes}
