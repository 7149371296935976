"""Microbatches in flight on each stage, from a layout's schedule or from orders."""

import functools
from collections.abc import Mapping

import numpy as np

from autopart.records.layouts import Layout, one_replica, own_microbatches
from autopart.records.problem import CUSTOM
from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.encoding import F
from autopart.schedules.in_flight import (
    KINDS,
    OUTPUTS,
    STASH,
    WAITING,
    InFlight,
    in_flight_by_rank,
    joined,
    of_one_stage,
)
from autopart.schedules.named import one_f_one_b


def microbatches_in_flight(layout: Layout, stage: int) -> int:
    """The most microbatches past F and before B on a rank with stage `stage` (from 0).

    GPipe keeps all that the rank runs, 1F1B those in its warm-up, custom orders at least one.
    """
    return most_in_flight(stage_in_flight(layout, stage))


def most_in_flight(in_flight: int | InFlight) -> int:
    """The most microbatches past F and before B (or W)."""
    if isinstance(in_flight, int):
        return in_flight
    return int(in_flight.counts[:, [STASH, WAITING]].sum(axis=1).max())


def stage_in_flight(layout: Layout, stage: int) -> int | InFlight:
    """Microbatches and messages on a rank with stage `stage`, under the layout's schedule.

    A number is enough for GPipe and 1F1B. Custom orders are unknown yet, and keep at least one microbatch.
    """
    own = own_microbatches(layout, stage)
    if layout.schedule == "gpipe":
        return own
    if layout.schedule == "1f1b":
        counts = [len(ranks) for ranks in layout.stage_ranks[stage:]]
        return one_f_one_b.in_flight_on_rank(layout.num_microbatches, sum(counts[1:]), counts[0])
    if layout.schedule == CUSTOM:
        return 1
    return _in_flight_of_stage(one_replica(layout), stage)


def ranks_in_flight(layout: Layout) -> Mapping[int, InFlight]:
    """For each rank in the first replica, the microbatches and messages that its order keeps.

    Where two pipelines share these ranks, it is for both.
    """
    ranks = dict.fromkeys(ranks[0] for ranks in layout.stage_ranks)
    return dict(zip(ranks, _in_flight_of_ranks(one_replica(layout)), strict=True))


@functools.lru_cache(maxsize=64)
def _in_flight_of_ranks(one: Layout) -> tuple[InFlight, ...]:
    """What each rank keeps in a layout with one replica."""
    orders = make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)
    return in_flight_by_rank(orders, one.stage_ranks)


@functools.lru_cache(maxsize=1024)
def _in_flight_of_stage(one: Layout, stage: int) -> InFlight:
    ranks = _in_flight_of_ranks(one)
    return joined([of_one_stage(ranks[rank], stage) for rank in one.stage_ranks[stage]])


def stages_in_flight(schedule: Schedule, stage_ranks: StageRanks) -> tuple[InFlight, ...]:
    """For each stage, the places in its ranks' orders where one may keep most for it."""
    in_flight = in_flight_by_rank(schedule, stage_ranks)
    return tuple(
        joined([of_one_stage(in_flight[rank], stage) for rank in ranks if schedule[rank]])
        for stage, ranks in enumerate(stage_ranks)
    )


def one_in_flight() -> InFlight:
    """One microbatch in its F: every order keeps that for each stage at some moment, with no gradients yet."""
    counts = np.zeros((1, len(KINDS), 1), dtype=np.int64)
    counts[0, [STASH, OUTPUTS]] = 1
    return InFlight((0,), np.array([0]), np.array([F]), np.array([-1]), counts)
