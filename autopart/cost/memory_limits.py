"""Whether stages, layouts and plans fit into memory: each comparison with a limit is made here."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from autopart.cost.in_flight import microbatches_in_flight, ranks_in_flight, stage_in_flight
from autopart.cost.lending import borrowed_bytes
from autopart.cost.memory import memory, microbatch_bytes, total
from autopart.cost.stage_totals import Array, StageTotals
from autopart.records.cluster import Cluster, host_share, smallest_memory
from autopart.records.layouts import Layout, pipelines_together
from autopart.records.peak_bytes import bytes_at_places
from autopart.records.prediction import LASTING, Prediction
from autopart.records.problem import Problem
from autopart.schedules.in_flight import STASH, InFlight, of_one_stage
from autopart.units import Q

Bools = npt.NDArray[np.bool_]


class Limits(NamedTuple):
    """Bytes that a rank may use with so many microbatches in flight."""

    in_flight: int
    device_bytes: int
    host_bytes: int | None
    """None where host memory is not limited."""


def limits_of(problem: Problem, layout: Layout, stage: int) -> Limits:
    """The limits for each rank with stage `stage`: its smallest GPU, and its share on the host."""
    return Limits(
        in_flight=microbatches_in_flight(layout, stage),
        device_bytes=smallest_memory(problem.cluster, layout.stage_ranks[stage]),
        host_bytes=host_share(problem.cluster),
    )


@overload
def keeps_limits(device_bytes: float, host_bytes: float, limits: Limits) -> bool: ...
@overload
def keeps_limits(device_bytes: Array, host_bytes: Array, limits: Limits) -> Bools: ...
def keeps_limits(
    device_bytes: float | Array, host_bytes: float | Array, limits: Limits
) -> bool | Bools:
    """Whether bytes on the device and bytes on the host stay within a rank's limits."""
    on_device: Any = device_bytes <= limits.device_bytes
    if limits.host_bytes is None:
        return on_device
    return on_device & (host_bytes <= limits.host_bytes)


@overload
def stage_fits(
    totals: StageTotals[float],
    problem: Problem,
    replicas: int,
    limits: Limits,
    in_flight: int | InFlight,
) -> bool: ...
@overload
def stage_fits(
    totals: StageTotals[Array],
    problem: Problem,
    replicas: int,
    limits: Limits,
    in_flight: int | InFlight,
) -> Bools: ...
def stage_fits(
    totals: StageTotals[Any],
    problem: Problem,
    replicas: int,
    limits: Limits,
    in_flight: int | InFlight,
) -> bool | Bools:
    """Whether a stage with so many replicas keeps the limits on each of its ranks."""
    use = memory(totals, problem, replicas, in_flight)
    return keeps_limits(total(use), use.host, limits)


@overload
def fits_on_ranks(
    totals: StageTotals[float], problem: Problem, layout: Layout, stage: int
) -> bool: ...
@overload
def fits_on_ranks(
    totals: StageTotals[Array], problem: Problem, layout: Layout, stage: int
) -> Bools: ...
def fits_on_ranks(
    totals: StageTotals[Any], problem: Problem, layout: Layout, stage: int
) -> bool | Bools:
    """Whether a stage fits as stage `stage` in a layout, alone on its ranks."""
    ranks, limits = layout.stage_ranks[stage], limits_of(problem, layout, stage)
    together = pipelines_together(layout.schedule)
    if together == 1:
        return stage_fits(totals, problem, len(ranks), limits, stage_in_flight(layout, stage))
    # The ranks of one direction keep other microbatches in flight than those of the other one.
    fits: Any = True
    for at in range(together):
        own = limits._replace(device_bytes=smallest_memory(problem.cluster, ranks[at::together]))
        in_flight = of_one_stage(ranks_in_flight(layout)[ranks[at]], stage)
        fits = fits & stage_fits(totals, problem, len(ranks), own, in_flight)
    return fits


def ranks_fit(problem: Problem, layout: Layout, all_totals: Sequence[StageTotals[Array]]) -> Bools:
    """Whether each rank fits with all its stages, for several partitions side by side.

    The layout's replicas are equal. `all_totals` has for each stage arrays with an entry for each partition,
    where a rank's stages have a tied parameter once (autopart/cost/repeated_ties.py).
    """
    on_device: Bools = most_missing(problem, layout, all_totals) <= 0
    on_host = most_missing_on_host(problem, layout, all_totals)
    return on_device if on_host is None else on_device & (on_host <= 0)


def most_missing(
    problem: Problem, layout: Layout, all_totals: Sequence[StageTotals[Array]]
) -> Array:
    """Bytes that the fullest rank lacks, for several partitions side by side; below 0 where some are left.

    The arguments are those in `ranks_fit`.
    """
    uses = [
        memory(totals, problem, len(ranks), 0)
        for totals, ranks in zip(all_totals, layout.stage_ranks, strict=True)
    ]
    missing: list[Array] = []
    borrowed = borrowed_bytes(layout, [totals.stash_bytes for totals in all_totals])
    for rank, in_flight in ranks_in_flight(layout).items():
        # Step 1: bytes that last, for each stage on the rank.
        on = [s for s, ranks in enumerate(layout.stage_ranks) if rank in ranks]
        lasting = sum(getattr(uses[s], kind) for s in on for kind in LASTING)
        # Step 2: the most that the order keeps for all stages together, stash that other ranks lend, and one reserve.
        moving = bytes_at_places(
            in_flight, [microbatch_bytes(all_totals[s], problem.training) for s in on]
        )
        kept = sum(borrowed[s] for s in on)
        peak: Array = lasting + moving.max(axis=0) + kept + problem.cluster.reserve_bytes
        # Step 3: the smallest GPU on this place in all replicas.
        ranks = layout.stage_ranks[on[0]]
        alike = ranks[ranks.index(rank) :: pipelines_together(layout.schedule)]
        missing.append(peak - smallest_memory(problem.cluster, alike))
    return np.maximum.reduce(missing)


def most_missing_on_host(
    problem: Problem, layout: Layout, all_totals: Sequence[StageTotals[Array]]
) -> Array | None:
    """Bytes that the fullest rank lacks in its share of host memory; None without a limit.

    The arguments are those in `ranks_fit`.
    """
    share, missing = host_share(problem.cluster), list[Array]()
    if share is None:
        return None
    for rank, in_flight in ranks_in_flight(layout).items():
        on = [s for s, ranks in enumerate(layout.stage_ranks) if rank in ranks]
        state = sum(memory(all_totals[s], problem, len(layout.stage_ranks[s]), 0).host for s in on)
        stash = in_flight.counts[:, STASH] @ np.array([all_totals[s].host_bytes for s in on])
        missing.append(state + stash.max(axis=0) - share)
    return np.maximum.reduce(missing)


def prediction_fits(cluster: Cluster, prediction: Prediction) -> bool:
    """Whether each rank stays within its GPU's memory and within its share on the host."""
    peaks = prediction.rank_peak_bytes
    on_host = free_host_bytes(cluster, prediction)
    if on_host is not None and on_host < 0:
        return False
    if not cluster.gpus:
        return free_bytes(cluster, (), max(peaks, default=0)) >= 0
    return all(free_bytes(cluster, (rank,), peak) >= 0 for rank, peak in enumerate(peaks) if peak)


def free_bytes(cluster: Cluster, ranks: Iterable[int], peak_bytes: Q) -> Q:
    """Bytes left beside a peak on the smallest GPU among `ranks`; below 0 where the peak does not fit."""
    return smallest_memory(cluster, ranks) - peak_bytes


def free_host_bytes(cluster: Cluster, prediction: Prediction) -> int | None:
    """Bytes left in the share on the host of the rank that has most there; None without a limit."""
    share = host_share(cluster)
    of_stages = [stage.memory.host for stage in prediction.stages]
    return None if share is None else share - max(prediction.rank_host_bytes or of_stages)
