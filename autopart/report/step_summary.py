"""The JSON document for a simulated step. Times are seconds, sizes are bytes."""

from collections.abc import Sequence
from typing import Any

import msgspec

from autopart.cost.asynchronous import price_asynchronous
from autopart.records.plan import Plan, stage_ranks
from autopart.simulator.fill import fill_idle
from autopart.simulator.idle import Cause, Idle, idle_pieces, shown_causes, sums_by_cause
from autopart.simulator.memory import MemoryCurve, memory_over_time
from autopart.simulator.noise import Distribution
from autopart.simulator.period import period_of_plan
from autopart.simulator.state_actions import (
    ExposedTimes,
    StateSlice,
    exposed_times,
    has_state_actions,
    state_slices,
)
from autopart.simulator.timeline import Timeline, rank_slices, rank_spans, used_ranks


class SliceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One action on one rank, in seconds since the step began."""

    action: str
    """The action in torch's letters: stage, operation, microbatch, such as `2F0`."""
    start: float
    """When the action starts, in seconds."""
    end: float
    """When the action ends, in seconds."""


class IdleSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An interval in which one rank is idle, in seconds since the step began."""

    cause: Cause
    """Why the rank is idle."""
    start: float
    """When the interval starts, in seconds."""
    end: float
    """When the interval ends, in seconds."""


class StateSliceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The gathers or reductions of one action, or of one stage once per step, in seconds since the step began."""

    action: str
    """The state action in torch's words: `0UNSHARD` gathers weights, `0REDUCE_GRAD` reduces gradients."""
    beneath: str | None
    """The action beneath which it runs; null once per step."""
    start: float
    """When it starts, in seconds."""
    end: float
    """When it ends, in seconds."""
    exposed_time: float
    """Seconds of it that compute does not hide."""


class RankSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One step on one rank."""

    rank: int
    """The rank, counted from 0."""
    stages: tuple[int, ...]
    """Stages on this rank, counted from 0."""
    busy_time: float
    """Seconds that all actions take together, without gathers and reductions that compute does not hide."""
    sync_time: float
    """Seconds that all gradient syncs take together."""
    update_time: float
    """Seconds that the optimizer step takes."""
    gather_time: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds of gathers that compute does not hide, in actions and once per step. Absent without sharded state."""
    reduction_time: float | msgspec.UnsetType = msgspec.UNSET
    """The same for reductions."""
    hidden_message_time: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds of gathers and reductions beneath compute. Absent without sharded state."""
    idle_time: float
    """Seconds in which the rank is idle."""
    idle_times: dict[Cause, float]
    """Idle seconds by cause; shared state only with sharded state."""
    in_flight: int
    """Most microbatches in flight at once, counted once for each stage on the rank."""
    peak_bytes: int
    """Bytes on the device at the peak, over all stages on the rank."""
    slices: tuple[SliceSummary, ...]
    """All actions on the rank, in their order. Both actions of an overlapped pair have all its time."""
    idle: tuple[IdleSummary, ...]
    """All idle intervals on the rank, in their order."""
    state_actions: tuple[StateSliceSummary, ...] | msgspec.UnsetType = msgspec.UNSET
    """Gathers and reductions, in their order. Absent without sharded state."""


class NoiseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Makespans under noise, in seconds."""

    noise: str
    """Where the noise comes from: a share of every time, or the profile's ranges."""
    draws: int
    """How many steps were drawn."""
    seed: int
    """Seed for the random numbers."""
    mean: float
    """Mean makespan, in seconds."""
    deviation: float
    """Standard deviation, in seconds."""
    smallest: float
    """Shortest makespan, in seconds."""
    percentile_5: float
    """Makespan that 5 % stay below, in seconds."""
    median: float
    """Median makespan, in seconds."""
    percentile_95: float
    """Makespan that 95 % stay below, in seconds."""
    largest: float
    """Longest makespan, in seconds."""


class AsynchronousSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The plan's stages under one asynchronous schedule."""

    schedule: str
    """The schedule's name."""
    period: float
    """Least seconds from one microbatch to the next, over all replicas together."""
    samples_per_second: float
    """Samples per second at that period."""
    in_flight: tuple[int, ...]
    """Microbatches in flight on each stage."""
    extra_copies: tuple[int, ...]
    """Extra weight copies on each stage."""
    forward_delay: float
    """Updates by which the weights are late in the first stage's forward."""
    backward_delay: float
    """Updates by which the weights are late in the first stage's backward."""
    peak_bytes: tuple[int, ...]
    """Peak bytes per rank, for each stage."""
    fits: bool
    """Whether every rank has enough memory."""


class FillSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Work in the ranks' idle time under `--fill`, in seconds."""

    work: float
    """Seconds of work on each rank."""
    filled_times: tuple[float, ...]
    """Seconds of it in idle time, for each rank of `ranks`."""
    makespan: float
    """Seconds of the step with the work that no idle time takes."""
    bubble: float
    """Idle share of all rank-seconds in that step, 0 to 1."""


class SimulateSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart simulate --json` prints."""

    plan: str
    """Plan file."""
    makespan: float
    """Seconds that the whole step takes."""
    period: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds from step to step, where steps run back to back. Only for plans that minimise it."""
    bubble: float
    """Idle share of all rank-seconds in the step, 0 to 1."""
    ranks: tuple[RankSummary, ...]
    """All ranks that have a stage."""
    noise: NoiseSummary | None
    """How the makespan varies under `--noise`; null without that option."""
    trace: str | None
    """Trace file; null where none was written."""
    asynchronous: tuple[AsynchronousSummary, ...] = ()
    """One entry for each asynchronous schedule under `--asynchronous`; empty without that option."""
    fill: FillSummary | None = None
    """Work in idle time; null without `--fill`."""


def simulate_summary(
    plan: Plan,
    timeline: Timeline,
    path: str,
    *,
    noise: NoiseSummary | None = None,
    trace: str | None = None,
    asynchronous: tuple[AsynchronousSummary, ...] = (),
    fill: float | None = None,
) -> SimulateSummary:
    """The document for a step: every rank's actions, idle time and memory.

    `fill` is seconds of work for the idle time of each rank.
    """
    idle = idle_pieces(timeline)
    curves = memory_over_time(timeline, stage_ranks(plan), plan.prediction.stages)
    return SimulateSummary(
        plan=path,
        makespan=timeline.makespan,
        period=period_of_plan(plan) if plan.objective == "period" else msgspec.UNSET,
        bubble=timeline.bubble,
        ranks=tuple(
            _rank_summary(plan, timeline, rank, idle[rank], curves[rank])
            for rank in used_ranks(timeline)
        ),
        noise=noise,
        trace=trace,
        asynchronous=asynchronous,
        fill=None if fill is None else _fill_summary(timeline, idle, fill),
    )


def _fill_summary(
    timeline: Timeline, idle: tuple[tuple[Idle, ...], ...], work: float
) -> FillSummary:
    ranks = used_ranks(timeline)
    fills = [fill_idle(idle[rank], work) for rank in ranks]
    # Work that is left on a rank follows its step, and all ranks begin the next step together.
    longer = max(one.left for one in fills)
    makespan = timeline.makespan + longer
    waiting = sum(one.end - one.start for rank in ranks for one in idle[rank])
    spare = waiting + longer * len(ranks) - work * len(ranks)
    return FillSummary(
        work=work,
        filled_times=tuple(one.time for one in fills),
        makespan=makespan,
        bubble=max(0.0, spare) / (makespan * len(ranks)) if makespan else 0.0,
    )


def asynchronous_summary(plan: Plan) -> tuple[AsynchronousSummary, ...]:
    """The plan's stages under every asynchronous schedule."""
    size = plan.microbatch_size
    return tuple(
        AsynchronousSummary(
            samples_per_second=size / price.period if price.period else 0.0, **price._asdict()
        )
        for price in price_asynchronous(plan)
    )


def noise_summary(asked: str, draws: int, seed: int, found: Distribution) -> NoiseSummary:
    """The figures for `draws` steps under the noise that `asked` names."""
    return NoiseSummary(noise=asked, draws=draws, seed=seed, **found._asdict())


def _rank_summary(
    plan: Plan, timeline: Timeline, rank: int, idle: tuple[Idle, ...], curve: MemoryCurve
) -> RankSummary:
    places = [place for place, stage in enumerate(plan.stages) if rank in stage.ranks]
    slices = rank_slices(timeline, rank)
    busy = sum(one.end - one.start for one in rank_spans(timeline, rank))
    sync = sum(one.end - one.start for one in timeline.syncs[rank])
    update = timeline.rank_end[rank] - timeline.sync_end[rank]
    causes = sums_by_cause(idle)
    messages = state_slices(plan, timeline, rank)
    exposed = exposed_times(messages)
    return RankSummary(
        rank=rank,
        stages=tuple(places),
        busy_time=busy - sum(exposed.in_actions.values()),
        sync_time=sync,
        update_time=update - sum(exposed.once_per_step.values()),
        idle_time=sum(causes.values()),
        idle_times={cause: causes[cause] for cause in shown_causes(timeline)},
        in_flight=timeline.in_flight[rank],
        peak_bytes=curve.peak_bytes,
        slices=tuple(
            SliceSummary(action=str(one.action), start=one.start, end=one.end) for one in slices
        ),
        idle=tuple(IdleSummary(cause=span.cause, start=span.start, end=span.end) for span in idle),
        **_state_fields(messages, exposed) if has_state_actions(plan) else {},
    )


def _state_fields(messages: Sequence[StateSlice], exposed: ExposedTimes) -> dict[str, Any]:
    """The fields of a rank for its gathers and reductions."""
    return {
        "gather_time": exposed.total("UNSHARD"),
        "reduction_time": exposed.total("REDUCE_GRAD"),
        "hidden_message_time": sum(max(0.0, s.end - s.start - s.exposed) for s in messages),
        "state_actions": tuple(
            StateSliceSummary(
                action=one.name,
                beneath=None if one.action is None else str(one.action),
                start=one.start,
                end=one.end,
                exposed_time=one.exposed,
            )
            for one in messages
        ),
    }
