"""What a plan's stages would cost under asynchronous schedules, beside its own synchronous step.

Their weights change while microbatches are in flight, so they train another way, and no plan says them.
Compared are the seconds from one microbatch to the next once the pipeline is full, which has no fill, drain or
bubble, and the bytes of every rank with the schedule's copies of the weights.
"""

import itertools
from typing import NamedTuple

from autopart.cluster import smallest_memory
from autopart.cost import steady_period, total, with_versions
from autopart.errors import PlanError
from autopart.plan import Plan, stage_ranks
from autopart.schedules.asynchronous import (
    ASYNCHRONOUS,
    Asynchronous,
    Setting,
)

PIPELINES = 2
"""Of AvgPipe, which trains several copies of the model side by side."""


class AsynchronousPrice(NamedTuple):
    """One asynchronous schedule on the stages of a plan."""

    schedule: str
    period: float
    """Seconds from one microbatch to the next, over all replicas; no pipeline of these stages and these
    microbatches in flight is faster (`cost.steady_period`)."""
    in_flight: tuple[int, ...]
    """Of each stage."""
    extra_copies: tuple[int, ...]
    """Of each stage's weights beside the current ones."""
    forward_delay: float
    """Updates that the weights of the first stage's forward are behind, on average."""
    backward_delay: float
    peak_bytes: tuple[int, ...]
    """Of a rank of each stage."""
    fits: bool


def price_asynchronous(plan: Plan) -> tuple[AsynchronousPrice, ...]:
    """Every asynchronous schedule on a plan's stages.

    Raises PlanError where a rank stands in several stages: these schedules give it one.
    """
    ranks = [rank for own in stage_ranks(plan) for rank in own]
    if len(set(ranks)) < len(ranks):
        raise PlanError(
            "asynchronous schedules run one stage on each rank, and this plan's ranks have several; "
            "solve with --schedule 1f1b"
        )
    return tuple(price_of(plan, kind) for kind in ASYNCHRONOUS.values())


def price_of(plan: Plan, kind: Asynchronous) -> AsynchronousPrice:
    """One asynchronous schedule on a plan's stages, of which each rank has one."""
    stages, replicas = plan.prediction.stages, [len(stage.ranks) for stage in plan.stages]
    setting = _setting(plan, kind)
    in_flight = tuple(kind.in_flight(setting, s) for s in range(len(stages)))
    copies = tuple(kind.extra_copies(setting, s) for s in range(len(stages)))
    peaks = tuple(
        total(with_versions(stage, held, more))
        for stage, held, more in zip(stages, in_flight, copies, strict=True)
    )
    limits = [smallest_memory(plan.cluster, own) for own in stage_ranks(plan)]
    beside = plan.cluster.sends_overlap
    sends = [
        max(here.send_time, there.send_back_time) if beside else 0.0
        for here, there in itertools.pairwise(stages)
    ]
    return AsynchronousPrice(
        schedule=kind.name,
        period=steady_period([stage.busy_time for stage in stages], sends, in_flight, replicas),
        in_flight=in_flight,
        extra_copies=copies,
        forward_delay=kind.forward_delay(setting, 0),
        backward_delay=kind.backward_delay(setting, 0),
        peak_bytes=peaks,
        fits=all(peak <= limit for peak, limit in zip(peaks, limits, strict=True)),
    )


def _setting(plan: Plan, kind: Asynchronous) -> Setting:
    """The plan's microbatches to an update, or as many as the schedule asks for."""
    stages = len(plan.stages)
    per_pipeline = plan.num_microbatches // max(len(stage.ranks) for stage in plan.stages)
    to_an_update = 1 if kind.every_microbatch else per_pipeline
    return Setting(
        num_stages=stages,
        num_microbatches=max(to_an_update, kind.least_microbatches(stages)),
        num_pipelines=PIPELINES,
    )
