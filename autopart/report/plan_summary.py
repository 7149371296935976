"""The JSON documents for a plan: its figures, checks and exports. Times are seconds, sizes bytes."""

from collections.abc import Mapping, Sequence

import msgspec

from autopart.cost.stage_times import plan_bottleneck
from autopart.records.check import Check
from autopart.records.expert_load import AssumedLoad
from autopart.records.group_choice import load_of
from autopart.records.plan import Plan, SearchedSize, Stage
from autopart.records.plan_degrees import gpus_of_ranks, has_several_degrees, rank_sizes
from autopart.records.prediction import MemoryUse
from autopart.records.rank_group import MaybeGroup
from autopart.report.memory_table import RankMemory
from autopart.report.plan_table import peak_bytes


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One stage in a plan. Times are seconds per microbatch."""

    layers: tuple[str, ...]
    """The stage's layers by name."""
    ranks: tuple[int, ...]
    """The stage's ranks, one for each replica."""
    group: MaybeGroup = msgspec.UNSET
    """The stage's own rank group, in a plan with several tensor degrees; absent for one GPU."""
    gpus: tuple[tuple[int, ...], ...] | msgspec.UnsetType = msgspec.UNSET
    """For each of its ranks the GPUs, in a plan with several tensor degrees; else absent."""
    forward_time: float
    """Seconds that the forward takes."""
    backward_time: float
    """Seconds that the whole backward takes."""
    busy_time: float
    """Seconds for which a microbatch keeps its rank busy, with fixed costs and sends."""
    in_flight: int
    """Microbatches in flight at most."""
    peak_bytes: int
    """Bytes on the device at the peak, for one rank."""
    memory: MemoryUse
    """These bytes by kind."""


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart show --json` prints."""

    plan: str
    """Plan file."""
    model: str
    """The model as the profile names it."""
    method: str
    """How the profile's times were made: `measured`, `analytic` or `imported`."""
    gpu: str
    """The cluster's kind of GPU."""
    objective: str
    """The minimised quantity, which the lower bound belongs to: `step`, `period` or `bottleneck`."""
    step_time: float
    """Seconds that the simulated step takes."""
    period: float | msgspec.UnsetType = msgspec.UNSET
    """Predicted seconds from step to step, where steps run back to back. Only where it is the objective."""
    bottleneck_time: float
    """Seconds per step for which the busiest rank works on microbatches."""
    lower_bound: float
    """Proven lower bound for the objective, in seconds."""
    gap: float | None
    """Objective over its lower bound, minus 1; null where the bound is 0."""
    any_order_bound: float
    """Seconds that no order of actions can beat, with the same demands otherwise."""
    bubble: float
    """Idle share of all rank-seconds in a step, 0 to 1."""
    solver: str
    """The solver that found the plan."""
    solve_seconds: float
    """Seconds that the search took."""
    schedule: str
    """The schedule's name."""
    num_microbatches: int
    """Microbatches per step, over all replicas together."""
    microbatch_size: int
    """Samples per microbatch."""
    group: MaybeGroup = msgspec.UNSET
    """The rank group; absent for one GPU. With g GPUs in each, rank q is the GPUs q x g … q x g + g - 1."""
    expert_imbalance: AssumedLoad | msgspec.UnsetType = msgspec.UNSET
    """How uneven the loads of expert ranks are assumed to be; absent for balanced load."""
    sizes: tuple[SearchedSize, ...]
    """All microbatch sizes and rank groups that were searched."""
    stages: tuple[StageSummary, ...]
    """All stages, in pipeline order."""


class MemorySummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart show --memory --json` prints."""

    plan: str
    """Plan file."""
    ranks: tuple[RankMemory, ...]
    """Every rank in use; ranks with equal memory are one entry."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Another split, to compare the plan with."""

    step_time: float | None = None
    """Seconds that its simulated step takes; null where it is infeasible."""
    peak_bytes: int | None = None
    """Peak bytes on its fullest rank; null where it is infeasible."""
    infeasible: str | None = None
    """The reason why this split gives no plan; null where it gives one."""


class SolveSummary(PlanSummary, frozen=True, kw_only=True):
    """The document that `autopart solve --json` prints."""

    profile: str
    """Profile files, with commas between."""
    reading: str
    """The counts as they were understood: `8 GPUs in all: 2 nodes x 4 …`."""
    notes: tuple[str, ...]
    """Limits that the figures have: an analytic profile, another device."""
    baselines: dict[str, Baseline]
    """Other splits by name: `uniform` (equal layer counts) and `parameters` (equal bytes)."""


class CheckSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One check on a plan."""

    name: str
    """The check's name."""
    passed: bool
    """Whether the plan passed it."""
    detail: str
    """The finding in words."""


class VerifySummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart verify --json` prints."""

    plan: str
    """Plan file."""
    profile: str | None
    """Profile files, with commas between; null where none was given."""
    target: str | None
    """The framework that read the plan's export; null where none was asked for."""
    passed: bool
    """Whether the plan passed all checks."""
    checks: tuple[CheckSummary, ...]
    """All checks, in their order."""


class ExportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart export --json` prints."""

    plan: str
    """Plan file."""
    target: str
    """The framework's name."""
    files: tuple[str, ...]
    """All written files."""
    notes: tuple[str, ...]
    """Settings that the files cannot express, for you to make."""
    check: str | None = None
    """Result when one step was compared with the plain model; null without --check."""


def stage_summaries(plan: Plan) -> tuple[StageSummary, ...]:
    """A plan's stages with their predictions."""
    return tuple(
        StageSummary(
            layers=stage.layers,
            ranks=stage.ranks,
            group=stage.group,
            gpus=_own_gpus(plan, stage),
            forward_time=predicted.forward_time,
            backward_time=predicted.backward_time,
            busy_time=predicted.busy_time,
            in_flight=predicted.in_flight,
            peak_bytes=predicted.peak_bytes,
            memory=predicted.memory,
        )
        for stage, predicted in zip(plan.stages, plan.prediction.stages, strict=True)
    )


def _own_gpus(plan: Plan, stage: Stage) -> tuple[tuple[int, ...], ...] | msgspec.UnsetType:
    """For each of a stage's ranks its GPUs, where stages have tensor degrees of their own."""
    if not has_several_degrees(plan):
        return msgspec.UNSET
    gpus = gpus_of_ranks(rank_sizes(plan))
    return tuple(tuple(gpus[rank]) for rank in stage.ranks)


def plan_summary(plan: Plan, path: str) -> PlanSummary:
    """The figures for the plan in the file `path`."""
    return PlanSummary(
        plan=path,
        model=plan.origin.model,
        method=plan.origin.method,
        gpu=plan.cluster.gpu,
        objective=plan.objective,
        step_time=plan.prediction.step_time,
        period=plan.prediction.period,
        bottleneck_time=plan_bottleneck(plan),
        lower_bound=plan.certificate.lower_bound,
        gap=plan.certificate.gap,
        any_order_bound=plan.certificate.any_order_bound,
        bubble=plan.prediction.bubble,
        solver=plan.origin.solver,
        solve_seconds=plan.origin.solve_seconds,
        schedule=plan.schedule,
        num_microbatches=plan.num_microbatches,
        microbatch_size=plan.microbatch_size,
        group=plan.group,
        expert_imbalance=load_of(plan.demands.group, plan.group),
        sizes=plan.sizes,
        stages=stage_summaries(plan),
    )


def solve_summary(
    plan: Plan,
    path: str,
    *,
    profile: str,
    reading: str,
    notes: Sequence[str],
    baselines: Mapping[str, Plan | str],
) -> SolveSummary:
    """The figures for a new plan, and how the counts were read."""
    figures = msgspec.structs.asdict(plan_summary(plan, path))
    beside = {name: _baseline(other) for name, other in baselines.items()}
    return SolveSummary(
        profile=profile, reading=reading, notes=tuple(notes), baselines=beside, **figures
    )


def _baseline(other: Plan | str) -> Baseline:
    if isinstance(other, str):
        return Baseline(infeasible=other)
    return Baseline(step_time=other.prediction.step_time, peak_bytes=peak_bytes(other))


def verify_summary(
    checks: Sequence[Check], plan: str, profile: str | None, target: str | None
) -> VerifySummary:
    """A plan file's checks against a profile file, a framework, or both."""
    return VerifySummary(
        plan=plan,
        profile=profile,
        target=target,
        passed=all(check.passed for check in checks),
        checks=tuple(CheckSummary(**check._asdict()) for check in checks),
    )
