"""A prediction at the pace that the machine had in the run.

A profile's seconds are seconds at the profile's pace. On each rank a step takes longer by two factors: the
fixed work's seconds in the run over those in the profile, and the share of time in which the rank had a
core. All seconds on a CPU are multiplied by both. On a GPU sends and syncs stay: links have their own pace.
"""

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from autopart.records.pace import Pace, PaceComparison
from autopart.records.plan import Plan
from autopart.records.prediction import StagePrediction, Sync, SyncParts
from autopart.records.run_result import RankStep
from autopart.simulator.timeline import simulate_plan, simulate_with
from autopart.units import format_share

replace = msgspec.structs.replace

UNSTEADY = 0.15
"""Interquartile range of the pace over its median above which a machine is too unsteady to compare."""
UNDISTURBED = 0.95
"""Share of core time below which other processes have disturbed the run."""
MOVED = 0.25
"""Change of the pace from profile to run above which the comparison at equal pace is rough too."""

_COMPUTE = ("forward_time", "backward_time", "weight_grad_time", "split_time", "update_time")
_SENDS = ("send_time", "send_back_time")


def slowdowns(plan: Plan, ranks: Sequence[RankStep]) -> dict[int, float]:
    """For each rank the pace's seconds over the profile's; empty where either is not known."""
    profiled = plan.origin.pace
    if profiled is msgspec.UNSET:
        return {}
    return {ran.rank: ran.pace.time / profiled.time for ran in ranks if ran.pace is not None}


def compare_pace(
    plan: Plan, ranks: Sequence[RankStep], predicted: float, step_time: float | None
) -> PaceComparison | None:
    """The run's pace beside the profile's; None where no rank sampled its pace.

    `predicted` and `step_time` are the predicted and the measured step in seconds. The latter is None where
    ranks ran alone.
    """
    if all(ran.pace is None for ran in ranks):
        return None
    shares = [1.0 if ran.core_share is None else ran.core_share for ran in ranks]
    found, core_share = slowdowns(plan, ranks), statistics.fmean(shares)
    if not found:
        return PaceComparison(
            slowdown=None,
            core_share=core_share,
            predicted_step_time=None,
            error=None,
            unknown=_why_unknown(plan),
        )
    again = None if step_time is None else _step_at_pace(plan, predicted, ranks, found)
    return PaceComparison(
        slowdown=statistics.fmean(found.values()),
        core_share=core_share,
        predicted_step_time=again,
        error=None if again is None or not step_time else again / step_time - 1.0,
    )


def _why_unknown(plan: Plan) -> str:
    if plan.origin.method == "measured":
        return "the profile does not have the machine's pace; make it again with 'autopart profile'"
    return f"the profile is {plan.origin.method}, not measured on this machine"


def _step_at_pace(
    plan: Plan, predicted: float, ranks: Sequence[RankStep], found: Mapping[int, float]
) -> float:
    """The predicted step seconds at the run's pace and share of cores."""
    factors = _with_cores(ranks, found)
    # An asynchronous run's prediction is no simulated step, so the simulation only scales it.
    before, after = simulate_plan(plan), simulate_with(plan, *at_pace(plan, ranks, factors))
    return predicted * (after.makespan / before.makespan if before.makespan else 1.0)


def _with_cores(ranks: Sequence[RankStep], found: Mapping[int, float]) -> dict[int, float]:
    return {
        ran.rank: found[ran.rank] / (ran.core_share or 1.0) for ran in ranks if ran.rank in found
    }


def stage_factors(plan: Plan, ranks: Sequence[RankStep]) -> list[float]:
    """For each stage the factor on its seconds at the run's pace and share of cores; empty if unknown."""
    factors = _with_cores(ranks, slowdowns(plan, ranks))
    return _of_stages(plan, factors) if factors else []


def _of_stages(plan: Plan, factors: Mapping[int, float]) -> list[float]:
    """Each stage's largest factor among its ranks; the mean of all where none was measured."""
    mean = statistics.fmean(factors.values())
    return [
        max((factors[rank] for rank in stage.ranks if rank in factors), default=mean)
        for stage in plan.stages
    ]


def at_pace(
    plan: Plan, ranks: Sequence[RankStep], factors: Mapping[int, float]
) -> tuple[tuple[StagePrediction, ...], tuple[Sync, ...], float]:
    """Stages, syncs and action overhead with all their seconds multiplied by their ranks' factors.

    A stage takes its slowest rank's factor, as does a sync. The overhead takes the mean.
    """
    on_gpu = any(ran.pace is not None and ran.pace.threads is None for ran in ranks)
    mean = statistics.fmean(factors.values())
    stages = tuple(
        _multiplied(predicted, _COMPUTE if on_gpu else (*_COMPUTE, *_SENDS), factor)
        for predicted, factor in zip(plan.prediction.stages, _of_stages(plan, factors), strict=True)
    )
    if on_gpu:
        return stages, plan.prediction.syncs, plan.cluster.action_overhead * mean
    syncs = tuple(
        _slower_sync(sync, max(factors.get(rank, mean) for rank in sync.ranks))
        for sync in plan.prediction.syncs
    )
    return stages, syncs, plan.cluster.action_overhead * mean


def _multiplied(predicted: StagePrediction, names: Sequence[str], factor: float) -> StagePrediction:
    return replace(predicted, **{name: getattr(predicted, name) * factor for name in names})


def _slower_sync(sync: Sync, factor: float) -> Sync:
    parts = sync.parts
    if parts is not None:
        timed = [name for name in SyncParts.__struct_fields__ if name not in ("stage", "buckets")]
        seconds = {name: getattr(parts, name) for name in timed}
        parts = replace(
            parts, **{name: time * factor for name, time in seconds.items() if time is not None}
        )
    return replace(sync, time=sync.time * factor, parts=parts)


def notes_on_pace(plan: Plan, ranks: Sequence[RankStep]) -> tuple[str, ...]:
    """One note where the machine was too unsteady to compare the run: the reasons, and what to do."""
    reasons: list[str] = []
    shares = [ran.core_share for ran in ranks if ran.core_share is not None]
    core = statistics.fmean(shares) if shares else 1.0
    if core < UNDISTURBED:
        reasons.append(
            f"other processes used the cores (ranks had one for {core:.0%} of their actions' time)"
        )
    of_runs = [one for one in (ran.pace for ran in ranks) if one is not None]
    if of_runs and (worst := max(map(relative_spread, of_runs))) > UNSTEADY:
        reasons.append(f"its pace varied by {format_share(worst)} in the run")
    found = slowdowns(plan, ranks)
    if found and abs(statistics.fmean(found.values()) - 1.0) > MOVED:
        reasons.append("it had another pace during the profile")
    if not reasons:
        return ()
    return (
        f"the machine was too unsteady for a comparison within a few per cent: {'; '.join(reasons)}; end other "
        "programs, then profile and run again without a pause",
    )


def relative_spread(pace: Pace) -> float:
    """Interquartile range over median."""
    return pace.spread / pace.time
