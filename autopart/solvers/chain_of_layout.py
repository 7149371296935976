"""A layout on a chain, as the problem for `chain_bisection`.

Stage seconds are the ones in cuts_dp.py: busy time, and a share for sends where sends overlap
compute.
"""

from typing import NamedTuple

import numpy as np

from autopart.cost.bytes_by_number import bytes_by_number
from autopart.cost.in_flight import microbatches_in_flight
from autopart.cost.stage_times import cut_links, traffic_times
from autopart.cost.stage_totals import Array, StageTotals
from autopart.records.cluster import Link
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.schedules.actions import microbatches_per_replica
from autopart.solvers.chain import Chain, MemoryLimit


class LayoutChain(NamedTuple):
    """The arguments for `chain_bisection.solve`."""

    chain: Chain
    links: tuple[int, ...]
    in_flight: tuple[int, ...]


def chain_of(
    problem: Problem, layout: Layout, totals: StageTotals[Array], send_share: float
) -> LayoutChain:
    """The chain, links and in-flight counts for a layout with equal replicas on equal GPUs.

    `totals` are matrices [i, j] over the chain's cuts. `send_share` is the share that counts for a
    send where sends overlap compute.
    """
    cluster, stages = problem.cluster, len(layout.stage_ranks)
    links = cut_links(cluster, layout.stage_ranks)
    kinds: list[Link | None] = list(dict.fromkeys(links)) or [cluster.intra_node]
    share = send_share if cluster.sends_overlap else 1.0
    work = totals.forward_time[0] + totals.backward_time[0]
    in_flight = tuple(microbatches_in_flight(layout, stage) for stage in range(stages))
    replicas = len(layout.stage_ranks[0])
    sizes = bytes_by_number(totals, problem, replicas, max(in_flight))
    return LayoutChain(
        chain=Chain(
            work=np.asarray(work, dtype=float),
            sends=tuple(
                np.ravel(share * sum(traffic_times(totals.sent, link))).astype(np.float64)
                for link in kinds
            ),
            overhead=2 * cluster.action_overhead,
            memory=MemoryLimit(
                cluster.memory_bytes,
                sizes.fixed,
                totals.stash_bytes,
                sizes.beside,
                microbatches_per_replica(problem.num_microbatches, replicas),
                sizes.all_at_once,
            ),
        ),
        links=tuple(kinds.index(link) for link in links),
        in_flight=in_flight,
    )
