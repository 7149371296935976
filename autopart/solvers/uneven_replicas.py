"""Stages with a replica count each, for autopart's own cost model: the smallest bottleneck.

Symbols   r   ranks per stage; each runs every r-th microbatch;  m  microbatches per step
          later   ranks in all stages behind

    seconds = (ceil(m / r) busy + sync + update) / m     busy seconds per rank and microbatch of the step
    seconds = (ceil(m / r) sends) / m                    the rank's link, where sends overlap compute
    in flight = min(ceil(later / r) + 1, ceil(m / r))    1F1B: the stage warms up until `later` ranks are fed

`busy` and `sends`, there and back, come from autopart/cost over one link. `sync` is an all-reduce
over r ranks on the same link, once per step. With a network record it has the least price of r ranks. The bottleneck leaves fill and drain to the simulator.
The downsets are the graph's cuts. So the answer is exact on a chain, and wherever all cuts are
listed (fewest_ranks.py). Ranks may stay idle.
"""

import time
from typing import NamedTuple

import numpy as np

from autopart.activations.best_totals import least_totals_on_replicas
from autopart.cost.bytes_by_number import bytes_by_number
from autopart.cost.cuts import Cuts, all_cuts, partition_of
from autopart.cost.links import link_across
from autopart.cost.memory_limits import Limits
from autopart.cost.on_ranks import on_replicas
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.stage_times import busy_time, traffic_times
from autopart.cost.syncs import least_sync_price, sync_price_on
from autopart.cost.tied_syncs import without_shared_ties
from autopart.errors import InfeasibleError
from autopart.records.cluster import Link, host_share, num_gpus
from autopart.records.layouts import Partition
from autopart.records.problem import Problem
from autopart.schedules.actions import microbatches_per_replica
from autopart.schedules.named.one_f_one_b import in_flight_on_rank
from autopart.solvers.fewest_ranks import Floats, bottleneck, fewest_ranks, tighten
from autopart.solvers.fewest_ranks_matrices import BytesMatrices, SecondsMatrices
from autopart.stopping.time_limit import check_time
from autopart.units import format_bytes


class ReplicatedStages(NamedTuple):
    """Stages, their replicas, their bottleneck and its lower bound."""

    bottleneck: float
    """Seconds that the busiest rank or link takes per microbatch of the step."""
    lower_bound: float
    """No plan in this shape has a smaller bottleneck; without `complete`, no plan with the listed
    cuts."""
    partition: Partition
    replicas: tuple[int, ...]
    """Ranks per stage."""
    complete: bool
    """Whether all cuts were listed."""


def solve(
    problem: Problem,
    cuts: Cuts | None = None,
    *,
    link: Link | None = None,
    time_limit: float = 60.0,
) -> ReplicatedStages:
    """The stages and replicas with the smallest bottleneck on at most the cluster's ranks.

    `link` carries all traffic. By default this is the link within the node on a single node, and
    the link between nodes otherwise. The only demand that counts is the schedule: 1F1B is taken
    where it is allowed. Raises InfeasibleError, naming the least memory, where nothing fits.
    """
    deadline = time.perf_counter() + time_limit
    cuts = all_cuts(problem.graph) if cuts is None else cuts
    if link is None:
        cluster = problem.cluster
        link = cluster.intra_node if cluster.num_nodes == 1 else link_across(cluster)
    ranks = num_gpus(problem.cluster)
    seconds = _stage_seconds(problem, cuts, link, ranks)
    low = float(seconds.work[-1]) / ranks
    longest = float(seconds.matrices[np.isfinite(seconds.matrices)].max())
    found = tighten(
        lambda limit: fewest_ranks(seconds, limit, ranks),
        lambda stages: bottleneck(seconds.seconds_of, stages),
        None,
        low,
        longest,
        deadline,
    )
    if found is None:
        raise InfeasibleError(_why_infeasible(problem, seconds, longest, ranks))
    return ReplicatedStages(
        bottleneck=found.bottleneck,
        lower_bound=found.lower_bound,
        partition=partition_of(cuts, [0, *(stage.end for stage in found.stages)]),
        replicas=tuple(seconds.ranks[stage.choice] for stage in found.stages),
        complete=cuts.complete,
    )


def _stage_seconds(problem: Problem, cuts: Cuts, link: Link, ranks: int) -> SecondsMatrices:
    """Seconds at [start cut, end cut] for each replica count."""
    cluster, totals, m = problem.cluster, cuts.totals, problem.num_microbatches
    counts = list(range(1, min(ranks, m) + 1))
    busy = busy_time(totals, cluster, link, link)
    sends = sum(traffic_times(totals.received, link)) + sum(traffic_times(totals.sent, link))
    seconds: list[Floats] = []
    for r in counts:
        check_time()
        own = microbatches_per_replica(m, r)
        placed = on_replicas(totals, problem, r, 1.0)
        price = sync_price_on(link, r, problem.training)
        if cluster.network is not None:
            price = least_sync_price(cluster, range(r, r + 1), problem.training)
        unshared = without_shared_ties(problem, cuts, placed)
        once = time_after_backward(problem, unshared, price, r, stage=None)
        time = (own * busy + once) / m
        if cluster.sends_overlap:
            time = np.maximum(time, own * sends / m)
        seconds.append(np.where(cuts.nested, time, np.inf))
    work = (totals.forward_time + totals.backward_time)[0]
    return SecondsMatrices(counts, seconds, work, _memory(problem, cuts, counts))


def _memory(problem: Problem, cuts: Cuts, counts: list[int]) -> BytesMatrices:
    """Bytes at [start cut, end cut] for each replica count, and the microbatches in flight."""
    m = problem.num_microbatches
    one_f_one_b = "1f1b" in problem.demands.schedules

    def in_flight(choice: int, later: int) -> int:
        if one_f_one_b:
            return in_flight_on_rank(m, later, counts[choice])
        return microbatches_per_replica(m, counts[choice])

    limits = Limits(m, problem.cluster.memory_bytes, host_share(problem.cluster))
    least = least_totals_on_replicas(problem, cuts, 1, limits)
    sizes = [bytes_by_number(least, problem, r, m) for r in counts]
    return BytesMatrices(
        fixed=[own.fixed + 0.0 for own in sizes],
        stash=least.stash_bytes + 0.0,
        in_flight=in_flight,
        limit=float(problem.cluster.memory_bytes),
        beside=[[b + 0.0 for b in sizes[0].beside]],
        all_at_once=[own.all_at_once + 0.0 for own in sizes],
        most=[microbatches_per_replica(m, r) for r in counts],
    )


def _why_infeasible(problem: Problem, seconds: SecondsMatrices, longest: float, ranks: int) -> str:
    """The message for the user, with the least memory to the byte."""
    assert seconds.memory is not None
    memory, low, high = seconds.memory, seconds.memory.limit, 2 * seconds.memory.limit + 1
    # Step 1: double the memory until something fits.
    while not _fits_into(seconds, memory, high, longest, ranks):
        low, high = high, 2 * high
    # Step 2: bisect down to one byte.
    while high - low > 1:
        middle = (low + high) // 2
        if _fits_into(seconds, memory, middle, longest, ranks):
            high = middle
        else:
            low = middle
    return (
        f"no stages with replicas fit into {format_bytes(memory.limit)} per GPU; "
        f"the least that would do is {format_bytes(high)} per GPU, or more GPUs"
    )


def _fits_into(
    seconds: SecondsMatrices, memory: BytesMatrices, limit: float, longest: float, ranks: int
) -> bool:
    """Whether some stages fit into `limit` bytes per GPU."""
    seconds.memory = memory._replace(limit=limit)
    return fewest_ranks(seconds, longest, ranks) is not None
