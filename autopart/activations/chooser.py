"""The rule that chooses activation policies for a stage.

    (1) A stage keeps all its stash where the demands allow this and it fits.
    (2) Else it takes the point on its frontier that fits and adds the fewest seconds.
    (3) Where no point fits, it takes the point with the fewest bytes.
    (4) Where optimizer state may lie on the device or on the host, (1) to (3) are applied for both places.
        Then `better_on_host` takes the place.

One partition (best_policies.py) and all stages between cuts (best_totals.py) apply these functions. An integer
program has variables in their place, but the rule decides on the partition that it finds.
"""

from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from autopart.activations.changes import PolicyChanges
from autopart.activations.frontier import Growth, most_points
from autopart.activations.points import Points
from autopart.activations.policies import may_offload
from autopart.cost.made_gradients import has_all_in_flight, rows_of
from autopart.cost.memory import memory, moving_bytes, total
from autopart.cost.memory_limits import Limits, fits_on_ranks, keeps_limits, limits_of
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_totals import Array, StageTotals
from autopart.records.cluster import HostLink, host_share, slowest_speed
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.peak_bytes import Peak, at_peak
from autopart.records.problem import Problem
from autopart.records.training import makes_gradients
from autopart.schedules.classic_rows import classic_rows
from autopart.schedules.in_flight import row_at
from autopart.units import Q

Bools = npt.NDArray[np.bool_]

NEGLIGIBLE = 1e-9
"""Share by which two sums in different order may differ."""


class StagePlace(NamedTuple):
    """A stage's ranks, as far as its policies depend on them."""

    replicas: int
    limits: Limits
    speed: float
    """The slowest rank's speed, relative to the profile's device."""


def place_of(problem: Problem, layout: Layout, stage: int) -> StagePlace:
    """The place for stage `stage` in a layout."""
    ranks = layout.stage_ranks[stage]
    limits = limits_of(problem, layout, stage)
    return StagePlace(len(ranks), limits, slowest_speed(problem.cluster, ranks))


def growth_of(problem: Problem, *, timed: bool = True) -> Growth:
    """How frontiers grow for a problem: by seconds and bytes, or by bytes alone."""
    hosted = host_share(problem.cluster) is not None
    return Growth(timed=timed, hosted=hosted, most_points=most_points(problem.graph.layers))


def shared_link(problem: Problem) -> HostLink | None:
    """The link to the host where stash may be offloaded, for stages that choose together on a rank."""
    return problem.cluster.host_link if may_offload(problem.demands) else None


def shared_growth(problem: Problem, *, split: bool) -> Growth:
    """How frontiers grow for stages that choose together on a rank, with whole or split backwards."""
    growth, offloads = growth_of(problem), shared_link(problem) is not None
    return growth._replace(hosted=growth.hosted and offloads, split=split, apart=offloads)


def kept_bytes(problem: Problem, place: StagePlace, totals: StageTotals[Q]) -> Q:
    """Peak bytes on each rank where all layers keep their stash."""
    return total(memory(totals, problem, place.replicas, place.limits.in_flight))


class Beside(NamedTuple):
    """A stage's peak bytes where all layers keep their stash, without workspace, in each of several terms."""

    bytes: tuple[Any, ...]
    """For each term, numbers or arrays with an entry for each of several stages."""
    in_flight: tuple[int, ...]
    """For each term the microbatches in flight."""
    first: tuple[bool, ...]
    """For each term whether the first backward runs, with the gradients that it has made."""

    def at(self, places: Any) -> "Beside":
        """The stages at some places."""
        return self._replace(bytes=tuple(one[places] for one in self.bytes))


def counts_first(problem: Problem, place: StagePlace) -> bool:
    """Whether a stage's first backward counts apart."""
    own = has_all_in_flight(problem, place.replicas, place.limits.in_flight)
    return own and makes_gradients(problem.training)


def beside_workspace(problem: Problem, place: StagePlace, totals: StageTotals[Q]) -> Beside:
    """The terms whose largest is `kept_bytes`, without workspace (autopart/cost/made_gradients.py)."""
    kept, in_flight = kept_bytes(problem, place, totals), place.limits.in_flight
    if not counts_first(problem, place):
        return in_one_term(kept, totals, in_flight)
    sizes = [moving_bytes(totals, problem, place.replicas, in_flight)]
    rows = rows_of(problem, place.replicas, in_flight)
    beside: Any = kept - _sum(at_peak(rows, sizes))
    terms = [row_at(rows, 0), row_at(rows, 1)]
    counts = [in_flight, in_flight]
    if in_flight > 1:
        terms.append(classic_rows(in_flight - 1))
        counts.append(in_flight - 1)
    first = (False, True, False)[: len(terms)]
    rooms = (totals.first_backward_bytes if own else totals.workspace_bytes for own in first)
    return Beside(
        tuple(
            beside + _sum(at_peak(term, sizes)) - room
            for term, room in zip(terms, rooms, strict=True)
        ),
        tuple(counts),
        first,
    )


def in_one_term(kept: Any, totals: StageTotals[Any], in_flight: int) -> Beside:
    """The bytes where all gradients count at every place."""
    return Beside((kept - totals.workspace_bytes,), (in_flight,), (False,))


def _sum(peak: Peak[Q]) -> Any:
    summed: Any = sum(peak)
    return summed


@overload
def changes_policies(kept: float, must: bool, limits: Limits) -> bool: ...
@overload
def changes_policies(kept: Array, must: Bools, limits: Limits) -> Bools: ...
def changes_policies(kept: float | Array, must: bool | Bools, limits: Limits) -> bool | Bools:
    """Whether a stage may not, or cannot, keep all its stash (1).

    `kept` are the peak bytes where it does. `must` says whether the demands forbid it.
    """
    return must | (kept > limits.device_bytes)


def best_point(points: Points, beside: Beside, limits: Limits) -> int:
    """The place among `points` that one stage takes (2), (3)."""
    changes = PolicyChanges(*(getattr(points, name) for name in PolicyChanges._fields))
    count = np.array([len(points.extra_time)])
    alone = beside._replace(bytes=tuple(np.array([one]) for one in beside.bytes))
    return int(best_points(changes, count, alone, limits)[0])


def best_points(
    points: PolicyChanges[Array], counts: Array, beside: Beside, limits: Limits
) -> npt.NDArray[np.int64]:
    """The places among `points` that several stages take (2), (3).

    `points` has the stages' frontiers one after the other, and `counts` their lengths. Each frontier has the point with the fewest extra seconds first.
    """
    # Step 1: each point's bytes, and whether it fits.
    on_host = limits.in_flight * points.host_bytes
    on_device: Array = np.maximum.reduce(
        [
            np.repeat(own, counts)
            + (points.first_backward_bytes if first else points.workspace_bytes)
            - number * points.freed_bytes
            for own, number, first in zip(*beside, strict=True)
        ]
    )
    fits = keeps_limits(on_device, on_host, limits)
    if limits.host_bytes is not None:
        # A point that the host has no room for must not count as the one with the fewest bytes.
        on_device = on_device + (on_host > limits.host_bytes) * on_host
    # Step 2: for each stage the first point that fits; `none` where there is none.
    none = len(fits)
    starts = np.cumsum(counts) - counts
    first = np.minimum.reduceat(np.where(fits, np.arange(none), none), starts)
    # Step 3: the first point with the fewest bytes.
    least = np.repeat(np.minimum.reduceat(on_device, starts), counts)
    fewest = np.minimum.reduceat(np.where(on_device == least, np.arange(none), none), starts)
    return np.where(first < none, first, fewest)


@overload
def better_on_host(
    problem: Problem,
    layout: Layout,
    stage: int,
    device: StageTotals[float],
    host: StageTotals[float],
) -> bool: ...
@overload
def better_on_host(
    problem: Problem,
    layout: Layout,
    stage: int,
    device: StageTotals[Array],
    host: StageTotals[Array],
) -> Bools: ...
def better_on_host(
    problem: Problem, layout: Layout, stage: int, device: StageTotals[Any], host: StageTotals[Any]
) -> Any:
    """Whether a stage's optimizer state lies on the host (4).

    `device` and `host` are the stage's best totals with state in each place.

    Where one place fits, that one is taken. Where both fit, the host is taken if the step then keeps a rank busy
    for fewer seconds. Where none fits, the place with fewer bytes is taken.
    """
    place = place_of(problem, layout, stage)
    (here, busy), (there, busy_there) = (
        (fits_on_ranks(totals, problem, layout, stage), _busy_time(problem, layout, stage, totals))
        for totals in (device, host)
    )
    fewer = kept_bytes(problem, place, host) < kept_bytes(problem, place, device)
    shorter = busy_there < busy * (1 - NEGLIGIBLE)
    return np.where(np.asarray(here | there), there & (~np.asarray(here) | shorter), fewer)


def _busy_time(problem: Problem, layout: Layout, stage: int, totals: StageTotals[Q]) -> Q:
    """Seconds per step in which each rank computes and updates."""
    placed = on_ranks(totals, problem, layout, stage)
    once = placed.forward_time + placed.backward_time
    return own_microbatches(layout, stage) * once + placed.update_time
