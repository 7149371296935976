"""A layout on a chain of layers in the words of the probe, with the numbers of the cost model.

The period of a stage is what the chain DP minimises too (solvers/chain.py): its busy time and, where
sends overlap compute, a share of its sends.
"""

from typing import NamedTuple

import numpy as np

from autopart.cluster import Link
from autopart.cost import cut_links, in_flight, memory, total, traffic_times
from autopart.layouts import Layout
from autopart.problem import Problem
from autopart.solvers.probe import Chain, Memory
from autopart.stage_load import StageLoad


class LayoutChain(NamedTuple):
    """The arguments of `probe.solve`."""

    chain: Chain
    links: tuple[int, ...]
    in_flight: tuple[int, ...]


def chain_of(problem: Problem, layout: Layout, loads: StageLoad, send_share: float) -> LayoutChain:
    """The stages of a layout with equal replicas on equal GPUs over the cuts of a chain; `loads` are matrices [i, j] over its cuts, and
    `send_share` of a send counts to the period where sends overlap compute."""
    cluster, stages = problem.cluster, len(layout.stage_ranks)
    links = cut_links(cluster, layout.stage_ranks)
    kinds: list[Link | None] = list(dict.fromkeys(links)) or [cluster.intra_node]
    share = send_share if cluster.sends_overlap else 1.0
    work = loads.forward_time[0] + loads.backward_time[0]
    nothing_in_flight = total(memory(loads, problem, len(layout.stage_ranks[0]), 0))
    return LayoutChain(
        chain=Chain(
            work=np.asarray(work, dtype=float),
            sends=tuple(
                np.ravel(share * sum(traffic_times(loads.sent, link))).astype(np.float64)
                for link in kinds
            ),
            overhead=2 * cluster.action_overhead,
            memory=Memory(cluster.memory_bytes, nothing_in_flight, loads.stash_bytes),
        ),
        links=tuple(kinds.index(link) for link in links),
        in_flight=tuple(in_flight(layout, stage) for stage in range(stages)),
    )
