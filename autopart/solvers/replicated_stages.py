"""Stages with a replica count each, for autopart's own cost model: the smallest bottleneck.

Symbols   r   ranks of a stage, each of which runs every r-th microbatch;  m  microbatches of a step
          later   the ranks of all stages behind

    load = (ceil(m / r) busy + sync + update) / m        seconds of a rank for each microbatch of the step
    load = (ceil(m / r) sends) / m                       of a rank's link, where sends overlap compute
    in flight = min(ceil(later / r) + 1, ceil(m / r))    1F1B: a stage is fed until `later` ranks are

`busy` and `sends`, there and back, are those of autopart/cost over one link, `sync` is an all-reduce
over r ranks by the same link, once a step. The load is compared over all stages; fill and drain are the
simulator's. States are the cuts of the graph, so on a chain, and wherever all cuts are listed, the
answer is exact (solvers/replication/dual.py). Idle ranks are allowed.
"""

import math
import time
from typing import NamedTuple

import numpy as np

from autopart.cluster import Link, host_share, num_gpus
from autopart.cost import (
    busy_time,
    memory,
    on_replicas,
    time_after_backward,
    total,
    traffic_times,
)
from autopart.cuts import Cuts, all_cuts, partition_of
from autopart.errors import InfeasibleError
from autopart.frontier import Limits
from autopart.problem import Problem
from autopart.solvers.replication.dual import Floats, bottleneck, fewest_machines, tighten
from autopart.solvers.replication.matrices import MatrixLoads, MatrixMemory
from autopart.stage_load import Partition
from autopart.treated import least_bytes_loads
from autopart.units import format_bytes


class ReplicatedStages(NamedTuple):
    """Stages, their replicas, and how good they are."""

    bottleneck: float
    """Seconds of the busiest rank or link for each microbatch of the step."""
    lower_bound: float
    """Over all plans of this shape, if `complete`; else over those with the cuts that were listed."""
    partition: Partition
    replicas: tuple[int, ...]
    complete: bool


def solve(
    problem: Problem,
    cuts: Cuts | None = None,
    *,
    link: Link | None = None,
    time_limit: float = 60.0,
) -> ReplicatedStages:
    """The stages and replicas with the smallest bottleneck on at most the cluster's ranks.

    `link` carries all traffic: by default the links within the node of a cluster of one node, those
    between nodes otherwise. Demands of the problem other than its schedules are not looked at; 1F1B is
    taken where it may be. Raises InfeasibleError, naming the least memory, where nothing fits.
    """
    deadline = time.perf_counter() + time_limit
    cuts = all_cuts(problem.graph) if cuts is None else cuts
    if link is None:
        cluster = problem.cluster
        link = cluster.intra_node if cluster.num_nodes == 1 else cluster.inter_node
    ranks = num_gpus(problem.cluster)
    loads = _loads(problem, cuts, link, ranks)
    low = float(loads.work[-1]) / ranks
    longest = float(loads.loads[np.isfinite(loads.loads)].max())
    found = tighten(
        lambda limit: fewest_machines(loads, limit, ranks),
        lambda stages: bottleneck(loads, stages),
        None,
        low,
        longest,
        deadline,
    )
    if found is None:
        raise InfeasibleError(_why_infeasible(problem, loads, longest, ranks))
    return ReplicatedStages(
        bottleneck=found.bottleneck,
        lower_bound=found.lower_bound,
        partition=partition_of(cuts, [0, *(stage.end for stage in found.stages)]),
        replicas=tuple(loads.machines[stage.choice] for stage in found.stages),
        complete=cuts.complete,
    )


def _loads(problem: Problem, cuts: Cuts, link: Link, ranks: int) -> MatrixLoads:
    cluster, load, m = problem.cluster, cuts.loads, problem.num_microbatches
    counts = list(range(1, min(ranks, m) + 1))
    busy = busy_time(load, cluster, link, link)
    sends = sum(traffic_times(load.received, link)) + sum(traffic_times(load.sent, link))
    loads: list[Floats] = []
    for r in counts:
        own = math.ceil(m / r)
        placed = on_replicas(load, problem, r, 1.0)
        once = time_after_backward(placed, problem.training, link, r)
        time = (own * busy + once) / m
        if cluster.sends_overlap:
            time = np.maximum(time, own * sends / m)
        loads.append(np.where(cuts.nested, time, np.inf))
    work = (load.forward_time + load.backward_time)[0]
    return MatrixLoads(counts, loads, work, _memory(problem, cuts, counts))


def _memory(problem: Problem, cuts: Cuts, counts: list[int]) -> MatrixMemory:
    m = problem.num_microbatches
    one_f_one_b = "1f1b" in problem.demands.schedules

    def held(choice: int, later: int) -> int:
        own = math.ceil(m / counts[choice])
        return min(-(-later // counts[choice]) + 1, own) if one_f_one_b else own

    limits = Limits(m, problem.cluster.memory_bytes, host_share(problem.cluster))
    least = least_bytes_loads(problem, cuts, 1, limits)
    return MatrixMemory(
        fixed=[total(memory(least, problem, r, 0)) + 0.0 for r in counts],
        stash=least.stash_bytes + 0.0,
        held=held,
        limit=float(problem.cluster.memory_bytes),
    )


def _why_infeasible(problem: Problem, loads: MatrixLoads, longest: float, ranks: int) -> str:
    assert loads.memory is not None
    memory, low, high = loads.memory, loads.memory.limit, 2 * loads.memory.limit + 1
    while not _fits_into(loads, memory, high, longest, ranks):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _fits_into(loads, memory, middle, longest, ranks):
            high = middle
        else:
            low = middle
    return (
        f"no stages with replicas fit into {format_bytes(memory.limit)} a GPU; "
        f"the least that would do is {format_bytes(high)}, or more GPUs"
    )


def _fits_into(
    loads: MatrixLoads, memory: MatrixMemory, limit: float, longest: float, ranks: int
) -> bool:
    loads.memory = memory._replace(limit=limit)
    return fewest_machines(loads, longest, ranks) is not None
