"""The places for the optimizer state of a stage: the device, or the host.

The stages of a rank choose a place together with their policies (autopart/activations/rank_choices.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from autopart.activations.points import Points
from autopart.activations.policies import optimizer_places
from autopart.activations.rank_choices import StagePoints
from autopart.cost.memory import largest_part
from autopart.cost.on_ranks import state_trip
from autopart.cost.stage_totals import StageTotals
from autopart.cost.syncs import update_share
from autopart.records.problem import Problem
from autopart.records.training import state_bytes
from autopart.units import Q


class RankOfReplicas(Protocol):
    """A rank as far as its state's places ask for it."""

    @property
    def replicas(self) -> int: ...
    @property
    def speed(self) -> float: ...


class StatePlace(NamedTuple):
    """One place for the optimizer state of a stage, and what it changes there."""

    on_host: bool
    off_device: int
    """Bytes that leave the device, beyond those in the first place."""
    added_on_host: int
    """Bytes on the host, beyond those in the first place."""
    update_time: float
    """Seconds added to the update, as in `StagePoints`."""


def with_first_place(problem: Problem, totals: StageTotals[Q]) -> StageTotals[Q]:
    """The totals with optimizer state in the first place that the demands allow."""
    on_host: Any = int(optimizer_places(problem.demands)[0])
    return totals._replace(optimizer_on_host=on_host + 0 * totals.num_trainable)


class SteppedElements(NamedTuple):
    """Trained elements of a stage."""

    all: int
    """With tied parameters that an earlier stage on the rank has too: their copies take seconds each time."""
    own: int
    """Without these (`without_repeats`)."""
    widest: int
    """In the layer with the most, at most `own`."""


def state_places(
    problem: Problem, rank: RankOfReplicas, microbatches: int, elements: SteppedElements
) -> tuple[StatePlace, ...]:
    """The places for the state of a stage with so many trained elements."""
    first, *others = optimizer_places(problem.demands)
    found = [StatePlace(first, 0, 0, 0.0)]
    if others and elements.all:
        link, size = problem.cluster.host_link, state_bytes(problem.training)
        assert link is not None, "demands on optimizer state ask for a link to the host"
        sharing = update_share(problem.training, rank.replicas)
        copied, state, room = (size * largest_part(count, sharing) for count in elements)
        seconds = state_trip(link, copied) * rank.speed / microbatches
        found.append(StatePlace(True, state - room, state, seconds))
    return tuple(found)


def points_of(points: Points, places: Sequence[StatePlace]) -> StagePoints:
    """A frontier's points as a rank's choice reads them: all of them with the first place, then with the next."""
    count, kept = len(points.extra_time), set(StagePoints._fields).intersection(Points._fields)
    columns = {name: np.tile(getattr(points, name), len(places)) for name in kept}
    return StagePoints(
        **columns,
        update_time=np.repeat([own.update_time for own in places], count),
        state_off_device=np.repeat([own.off_device for own in places], count),
        state_on_host=np.repeat([own.added_on_host for own in places], count),
    )
