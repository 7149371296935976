"""Period and memory for a plan's stages under asynchronous schedules, beside the plan's own synchronous step.

These schedules update weights while microbatches are in flight. So they train differently, and no plan uses them.
The period is the seconds from one microbatch to the next in a full pipeline, without fill, drain or bubble. The memory
includes the schedule's weight versions.
"""

import itertools
from typing import NamedTuple

from autopart.cost.memory import total, with_versions
from autopart.cost.memory_limits import free_bytes
from autopart.cost.stage_times import bottleneck_period
from autopart.errors import PlanError
from autopart.records.plan import Plan, stage_ranks
from autopart.schedules.asynchronous_kind import Asynchronous, Setting
from autopart.schedules.named.asynchronous import ASYNCHRONOUS

PIPELINES = 2
"""Model copies that AvgPipe trains side by side."""


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
    """One asynchronous schedule on the stages in a plan with one stage per rank."""
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
