"""Stash that stages lend to each other: seconds on the link, and bytes on the rank that keeps it.

Under BPipe stage s lends to stage k - 1 - s (autopart/schedules/lending.py). One L or T takes a
latency and the stash of one microbatch over the slowest link between the two stages' ranks, as one
message does.
"""

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from autopart.cost.in_flight import microbatches_in_flight
from autopart.cost.links import send_time
from autopart.cost.stage_times import cut_links
from autopart.records.cluster import Cluster, Link
from autopart.records.layouts import Layout, one_replica
from autopart.records.prediction import StagePrediction
from autopart.records.problem import LENDING
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.lending import lent_by, partner_stage, places_by_stage
from autopart.schedules.named.one_f_one_b import ONE_F_ONE_B
from autopart.units import Q


def borrowed_places(layout: Layout) -> tuple[int, ...]:
    """For each stage, the most stashes of its partner stage that one of its ranks keeps at once."""
    if layout.schedule not in LENDING:
        return (0,) * len(layout.stage_ranks)
    return _places(one_replica(layout))


@functools.lru_cache(maxsize=64)
def _places(one: Layout) -> tuple[int, ...]:
    return places_by_stage(_orders(one), one.stage_ranks)


@functools.lru_cache(maxsize=2)
def _orders(one: Layout) -> Schedule:
    return make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)


def microbatches_lent(layout: Layout) -> tuple[int, ...]:
    """For each stage, the microbatches in a step whose stash each of its ranks lends."""
    if layout.schedule not in LENDING:
        return (0,) * len(layout.stage_ranks)
    one = one_replica(layout)
    orders = _orders(one)
    return tuple(len(lent_by(orders[ranks[0]])) for ranks in one.stage_ranks)


def borrowed_bytes(layout: Layout, stash_bytes: Sequence[Q]) -> list[Q | int]:
    """For each stage, the bytes that its partner's stash takes on each of its ranks.

    `stash_bytes` has each stage's stash for one microbatch.
    """
    found: list[Any] = [
        places * stash_bytes[partner_stage(stage, len(stash_bytes))] if places else 0
        for stage, places in enumerate(borrowed_places(layout))
    ]
    return found


def lending_pairs(layout: Layout) -> list[tuple[int, int]]:
    """The pairs of stages between which stash moves, the lender first."""
    count = len(layout.stage_ranks)
    return [
        (partner_stage(borrower, count), borrower)
        for borrower, places in enumerate(borrowed_places(layout))
        if places
    ]


def lending_links(cluster: Cluster, layout: Layout) -> list[Link]:
    """For each of `lending_pairs` the slowest link that its moves use."""
    found: list[Link] = []
    for pair in lending_pairs(layout):
        (link,) = cut_links(cluster, [layout.stage_ranks[stage] for stage in pair])
        assert link is not None, "partners are different ranks"
        found.append(link)
    return found


def lend_times(cluster: Cluster, layout: Layout, stash_bytes: Sequence[Q]) -> list[Q | UnsetType]:
    """For each stage, the seconds of one L or T; unset where the stage lends nothing."""
    found: list[Q | UnsetType] = [UNSET] * len(stash_bytes)
    for (lender, _), link in zip(
        lending_pairs(layout), lending_links(cluster, layout), strict=True
    ):
        found[lender] = send_time(link, stash_bytes[lender], 1)
    return found


def with_lending(
    cluster: Cluster, layout: Layout, stages: Sequence[StagePrediction]
) -> tuple[StagePrediction, ...]:
    """The predictions of a layout's stages with the stash that they lend to each other.

    Microbatches in flight count wherever their stash is: they are those of 1F1B.
    """
    if layout.schedule not in LENDING:
        return tuple(stages)
    stash = [stage.stash_bytes for stage in stages]
    order = msgspec.structs.replace(layout, schedule=ONE_F_ONE_B.name)
    times = lend_times(cluster, layout, stash)
    return tuple(
        msgspec.structs.replace(
            stage,
            in_flight=microbatches_in_flight(order, at),
            lend_time=times[at],
            memory=msgspec.structs.replace(stage.memory, borrowed=borrowed),
            peak_bytes=stage.peak_bytes + borrowed,
        )
        for at, (stage, borrowed) in enumerate(
            zip(stages, borrowed_bytes(layout, stash), strict=True)
        )
    )
