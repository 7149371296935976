"""The JSON document of a simulated step, in seconds and bytes."""

import msgspec

from autopart.asynchronous_prices import price_asynchronous
from autopart.plan import Plan, stage_ranks
from autopart.simulator import Timeline
from autopart.simulator.idle import Cause, Idle, idle_pieces, sums_by_cause
from autopart.simulator.memory import MemoryCurve, memory_over_time
from autopart.simulator.noise import Distribution
from autopart.simulator.timeline import rank_slices, used_ranks


class SliceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One action on one rank, in seconds from the start of the step."""

    action: str
    start: float
    end: float


class IdleSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch in which a rank is idle for one cause, in seconds from the start of the step."""

    cause: Cause
    start: float
    end: float


class RankSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's step."""

    rank: int
    stages: tuple[int, ...]
    busy_time: float
    """Of its actions."""
    sync_time: float
    """Of its gradient syncs."""
    update_time: float
    idle_time: float
    idle_times: dict[Cause, float]
    """The idle time by cause."""
    in_flight: int
    peak_bytes: int
    """The most that it holds at once, over all its stages."""
    slices: tuple[SliceSummary, ...]
    idle: tuple[IdleSummary, ...]


class NoiseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Makespans of steps whose actions vary, in seconds."""

    noise: str
    """What was asked for: a share of every time, or the profile's own ranges."""
    draws: int
    seed: int
    mean: float
    deviation: float
    smallest: float
    percentile_5: float
    median: float
    percentile_95: float
    largest: float


class AsynchronousSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The plan's stages under one asynchronous schedule."""

    schedule: str
    period: float
    """Seconds from one microbatch to the next, over all replicas, at least."""
    samples_per_second: float
    in_flight: tuple[int, ...]
    extra_copies: tuple[int, ...]
    """Of each stage's weights."""
    forward_delay: float
    """Updates that the weights of the first stage's forward are behind."""
    backward_delay: float
    peak_bytes: tuple[int, ...]
    """Of a rank of each stage."""
    fits: bool


class SimulateSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopart simulate --json` prints."""

    plan: str
    makespan: float
    bubble: float
    ranks: tuple[RankSummary, ...]
    """The ranks that have a stage."""
    noise: NoiseSummary | None
    """The makespan's distribution, where noise was asked for."""
    trace: str | None
    """The trace file that was written, if one was."""
    asynchronous: tuple[AsynchronousSummary, ...] = ()
    """Where they were asked for."""


def simulate_summary(
    plan: Plan,
    timeline: Timeline,
    path: str,
    *,
    noise: NoiseSummary | None = None,
    trace: str | None = None,
    asynchronous: tuple[AsynchronousSummary, ...] = (),
) -> SimulateSummary:
    """What every rank does in a step."""
    idle = idle_pieces(timeline)
    curves = memory_over_time(timeline, stage_ranks(plan), plan.prediction.stages)
    return SimulateSummary(
        plan=path,
        makespan=timeline.makespan,
        bubble=timeline.bubble,
        ranks=tuple(
            _rank_summary(plan, timeline, rank, idle[rank], curves[rank])
            for rank in used_ranks(timeline)
        ),
        noise=noise,
        trace=trace,
        asynchronous=asynchronous,
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
    """The figures of `draws` steps under the noise that was asked for."""
    return NoiseSummary(noise=asked, draws=draws, seed=seed, **found._asdict())


def _rank_summary(
    plan: Plan, timeline: Timeline, rank: int, idle: tuple[Idle, ...], curve: MemoryCurve
) -> RankSummary:
    places = [place for place, stage in enumerate(plan.stages) if rank in stage.ranks]
    slices = rank_slices(timeline, rank)
    busy = sum(piece.end - piece.start for piece in slices)
    sync = sum(piece.end - piece.start for piece in timeline.syncs[rank])
    update = timeline.rank_end[rank] - timeline.sync_end[rank]
    causes = sums_by_cause(idle)
    return RankSummary(
        rank=rank,
        stages=tuple(places),
        busy_time=busy,
        sync_time=sync,
        update_time=update,
        idle_time=sum(causes.values()),
        idle_times=causes,
        in_flight=timeline.in_flight[rank],
        peak_bytes=curve.peak_bytes,
        slices=tuple(
            SliceSummary(action=str(piece.action), start=piece.start, end=piece.end)
            for piece in slices
        ),
        idle=tuple(
            IdleSummary(cause=piece.cause, start=piece.start, end=piece.end) for piece in idle
        ),
    )
