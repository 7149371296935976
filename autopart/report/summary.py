"""The JSON documents that `--json` prints: the same figures as the tables, in seconds and bytes."""

from collections.abc import Mapping, Sequence

import msgspec

from autopart.certificate import Check
from autopart.cost import plan_bottleneck
from autopart.plan import MemoryUse, Plan, SearchedSize
from autopart.profile import Profile, stash_error, time_error
from autopart.report.memory_table import RankMemory
from autopart.report.plan_table import peak_bytes


class LayerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of a profile."""

    name: str
    kind: str
    forward_time: float
    input_grad_time: float
    weight_grad_time: float
    stash_bytes: int
    param_bytes: int
    output_bytes: int
    share: float
    """Of the time of all layers, 0 to 1."""
    same_as: str | None


class ProfileSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart profile --json` prints."""

    profile: str
    """The file that was written."""
    model: str
    method: str
    device: str
    dtype: str
    microbatch_size: int
    num_params: int
    layers: tuple[LayerSummary, ...]
    time_error: float | None
    """Sum of the layers' time over the whole model's, minus 1; null where nothing was run."""
    stash_error: float | None
    warnings: tuple[str, ...]


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a plan."""

    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    forward_time: float
    backward_time: float
    busy_time: float
    in_flight: int
    peak_bytes: int
    memory: MemoryUse


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart show --json` prints."""

    plan: str
    """The plan's file."""
    model: str
    method: str
    """Of the profile: measured, analytic or imported."""
    gpu: str
    objective: str
    """What was minimised, and what the lower bound is one of: step or bottleneck."""
    step_time: float
    bottleneck_time: float
    """Seconds of a step that its busiest rank is busy with microbatches."""
    lower_bound: float
    gap: float
    bubble: float
    solver: str
    solve_seconds: float
    schedule: str
    num_microbatches: int
    microbatch_size: int
    sizes: tuple[SearchedSize, ...]
    """The microbatch sizes that were searched."""
    stages: tuple[StageSummary, ...]


class MemorySummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart show --memory --json` prints."""

    plan: str
    ranks: tuple[RankMemory, ...]
    """Every rank in use, those that hold the same together."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Another way to cut, beside the plan."""

    step_time: float | None = None
    peak_bytes: int | None = None
    infeasible: str | None = None
    """Why this way to cut yields no plan."""


class SolveSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart solve --json` prints: the plan's figures and how the question was read."""

    plan: str
    profile: str
    """The profile file that was used; several are separated by commas."""
    reading: str
    """How the counts were read: `8 GPUs in all: 2 nodes x 4 …`."""
    notes: tuple[str, ...]
    """What to keep in mind of the figures: an analytic profile, another device."""
    model: str
    method: str
    gpu: str
    objective: str
    """What was minimised, and what the lower bound is one of: step or bottleneck."""
    step_time: float
    bottleneck_time: float
    """Seconds of a step that its busiest rank is busy with microbatches."""
    lower_bound: float
    gap: float
    bubble: float
    solver: str
    solve_seconds: float
    schedule: str
    num_microbatches: int
    microbatch_size: int
    sizes: tuple[SearchedSize, ...]
    """The microbatch sizes that were searched."""
    stages: tuple[StageSummary, ...]
    baselines: dict[str, Baseline]


class CheckSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One question that was asked of a plan."""

    name: str
    passed: bool
    detail: str


class VerifySummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart verify --json` prints."""

    plan: str
    profile: str | None
    target: str | None
    """The framework that read the plan's export."""
    passed: bool
    checks: tuple[CheckSummary, ...]


class ExportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart export --json` prints."""

    plan: str
    target: str
    files: tuple[str, ...]
    """Paths of the files that were written."""
    notes: tuple[str, ...]
    """What the files cannot say and you must see to."""


def profile_summary(profile: Profile, path: str) -> ProfileSummary:
    """The figures of a profile that was written to `path`."""
    layers = profile.graph.layers
    times = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
    total = sum(times) or 1.0
    outputs = {layer.name: 0 for layer in layers}
    for value in profile.graph.values:
        outputs[value.producer] += value.bytes
    rows = tuple(
        LayerSummary(
            name=layer.name,
            kind=layer.kind,
            forward_time=layer.forward_time,
            input_grad_time=layer.input_grad_time,
            weight_grad_time=layer.weight_grad_time,
            stash_bytes=layer.stash_bytes,
            param_bytes=layer.param_bytes,
            output_bytes=outputs[layer.name],
            share=time / total,
            same_as=layer.same_as,
        )
        for layer, time in zip(layers, times, strict=True)
    )
    return ProfileSummary(
        profile=path,
        model=profile.source.model,
        method=profile.method,
        device=profile.device.name,
        dtype=profile.dtype,
        microbatch_size=profile.microbatch_size,
        num_params=profile.source.num_params,
        layers=rows,
        time_error=time_error(profile.whole) if profile.whole else None,
        stash_error=stash_error(profile.whole) if profile.whole else None,
        warnings=profile.warnings,
    )


def stage_summaries(plan: Plan) -> tuple[StageSummary, ...]:
    """The stages of a plan with their predictions."""
    return tuple(
        StageSummary(
            layers=stage.layers,
            ranks=stage.ranks,
            forward_time=predicted.forward_time,
            backward_time=predicted.backward_time,
            busy_time=predicted.busy_time,
            in_flight=predicted.in_flight,
            peak_bytes=predicted.peak_bytes,
            memory=predicted.memory,
        )
        for stage, predicted in zip(plan.stages, plan.prediction.stages, strict=True)
    )


def plan_summary(plan: Plan, path: str) -> PlanSummary:
    """The figures of the plan in the file `path`."""
    return PlanSummary(
        plan=path,
        model=plan.origin.model,
        method=plan.origin.method,
        gpu=plan.cluster.gpu,
        objective=plan.objective,
        step_time=plan.prediction.step_time,
        bottleneck_time=plan_bottleneck(plan),
        lower_bound=plan.certificate.lower_bound,
        gap=plan.certificate.gap,
        bubble=plan.prediction.bubble,
        solver=plan.origin.solver,
        solve_seconds=plan.origin.solve_seconds,
        schedule=plan.schedule,
        num_microbatches=plan.num_microbatches,
        microbatch_size=plan.microbatch_size,
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
    """The figures of a plan just made, and how the question was read."""
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
    """The checks of a plan file against a profile file, a framework, or both."""
    return VerifySummary(
        plan=plan,
        profile=profile,
        target=target,
        passed=all(check.passed for check in checks),
        checks=tuple(CheckSummary(**check._asdict()) for check in checks),
    )
