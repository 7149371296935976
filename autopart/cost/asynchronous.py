"""Period and memory for a plan's stages under asynchronous schedules, beside the plan's own synchronous step.

These schedules update weights while microbatches are in flight. So they train differently, and no plan uses them.
The period is the seconds from one microbatch to the next in a full pipeline, without fill, drain or bubble. The memory
includes the schedule's weight versions.
"""

import itertools
from typing import NamedTuple

from msgspec.structs import replace

from autopart.cost.memory import rank_memory, total, with_versions
from autopart.cost.memory_limits import free_bytes
from autopart.cost.stage_times import bottleneck_period
from autopart.errors import PlanError
from autopart.records.plan import Plan, stage_ranks
from autopart.schedules.asynchronous_kind import Asynchronous, Setting
from autopart.schedules.named.asynchronous import ASYNCHRONOUS, WPIPE
from autopart.schedules.named.wpipe import wpipe_orders

PIPELINES = 2
"""Model copies that AvgPipe trains side by side."""
_COUNTED_UPDATES = 4
"""Updates after which WPipe's order repeats, or nearly so."""


class AsynchronousPrice(NamedTuple):
    """One asynchronous schedule on a plan's stages."""

    schedule: str
    period: float
    """Seconds from one microbatch to the next, over all replicas.

    With these stages and microbatches in flight no pipeline is faster (`bottleneck_period`).
    """
    in_flight: tuple[int, ...]
    """For each stage the microbatches in flight."""
    extra_copies: tuple[int, ...]
    """For each stage the weight versions beside the current one."""
    forward_delay: float
    """Updates by which the weights in the first stage's forward are old, on average."""
    backward_delay: float
    """Updates by which the weights in the first stage's backward are old, on average."""
    peak_bytes: tuple[int, ...]
    """For each stage the peak bytes on one rank."""
    fits: bool
    """Whether each rank's peak fits into its GPU."""


def price_asynchronous(plan: Plan) -> tuple[AsynchronousPrice, ...]:
    """Every asynchronous schedule on a plan's stages.

    Raises PlanError where some rank has several stages: these schedules give each rank one.
    """
    ranks = [rank for own in stage_ranks(plan) for rank in own]
    if len(set(ranks)) < len(ranks):
        raise PlanError(
            "asynchronous schedules run one stage on each rank, and this plan's ranks have several; "
            "solve with --schedule 1f1b"
        )
    return tuple(price_of(plan, kind) for kind in ASYNCHRONOUS.values())


def price_of(plan: Plan, kind: Asynchronous) -> AsynchronousPrice:
    """One asynchronous schedule on the stages in a plan with one stage per rank; WPipe also with two."""
    ranks, half = stage_ranks(plan), len(plan.stages) // 2
    if kind is WPIPE and half and ranks[0] == ranks[half]:
        return _price_of_groups(plan)
    stages, replicas = plan.prediction.stages, [len(stage.ranks) for stage in plan.stages]
    # Step 1: microbatches in flight and weight versions.
    setting = _setting(plan, kind)
    in_flight = tuple(kind.in_flight(setting, s) for s in range(len(stages)))
    copies = tuple(kind.extra_copies(setting, s) for s in range(len(stages)))
    # Step 2: peak bytes with them.
    peaks = tuple(
        total(with_versions(stage, microbatches, more))
        for stage, microbatches, more in zip(stages, in_flight, copies, strict=True)
    )
    free = [
        free_bytes(plan.cluster, own, peak)
        for own, peak in zip(stage_ranks(plan), peaks, strict=True)
    ]
    # Step 3: the period. Blocking sends are part of the busy times already.
    overlap = plan.cluster.sends_overlap
    sends = [
        max(here.send_time, there.send_back_time) if overlap else 0.0
        for here, there in itertools.pairwise(stages)
    ]
    busy = [stage.busy_time for stage in stages]
    return AsynchronousPrice(
        schedule=kind.name,
        period=bottleneck_period(busy, sends, in_flight, replicas),
        in_flight=in_flight,
        extra_copies=copies,
        forward_delay=kind.forward_delay(setting, 0),
        backward_delay=kind.backward_delay(setting, 0),
        peak_bytes=peaks,
        fits=min(free) >= 0,
    )


def _price_of_groups(plan: Plan) -> AsynchronousPrice:
    """WPipe on stages that share the ranks, counted in its own order. Each rank's peak is at both stages.

    The period leaves out sends: a rank has other work while a message travels.
    """
    ranks, setting = stage_ranks(plan), _setting(plan, WPIPE)
    half = setting.num_stages // 2
    # Step 1: the rank's memory in the order of a few updates, with the weight versions.
    copies = tuple(WPIPE.extra_copies(setting, s) for s in range(setting.num_stages))
    stages = [
        replace(stage, memory=replace(stage.memory, versions=copies[s] * stage.memory.weights))
        for s, stage in enumerate(plan.prediction.stages)
    ]
    orders = wpipe_orders(half, setting.num_microbatches, _COUNTED_UPDATES)
    places = [[s % half] for s in range(setting.num_stages)]
    uses = rank_memory(places, orders, stages)
    peaks = [total(uses[rank]) for rank in range(half)] * 2
    free = [free_bytes(plan.cluster, own, peak) for own, peak in zip(ranks, peaks, strict=True)]
    # Step 2: the seconds of both stages together.
    busy = [stages[r].busy_time + stages[r + half].busy_time for r in range(half)]
    return AsynchronousPrice(
        schedule=WPIPE.name,
        period=max(busy),
        in_flight=tuple(WPIPE.in_flight(setting, s) for s in range(setting.num_stages)),
        extra_copies=copies,
        forward_delay=WPIPE.forward_delay(setting, 0),
        backward_delay=WPIPE.backward_delay(setting, 0),
        peak_bytes=tuple(peaks),
        fits=min(free) >= 0,
    )


def _setting(plan: Plan, kind: Asynchronous) -> Setting:
    """The plan's microbatches per update, or the fewest that the schedule needs."""
    stages = len(plan.stages)
    per_pipeline = plan.num_microbatches // max(len(stage.ranks) for stage in plan.stages)
    per_update = 1 if kind.every_microbatch else per_pipeline
    return Setting(
        num_stages=stages,
        num_microbatches=max(per_update, kind.least_microbatches(stages)),
        num_pipelines=PIPELINES,
    )
