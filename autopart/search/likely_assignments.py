"""Assignments of ranks to nodes that are likely to be good, for one layout.

The tree of all assignments (autopart/bounds/rank_assignments.py) lists those that bounds leave
open. It is often too large. These come first:

- Ranks are taken in their order.
- Each pipeline is side by side, so that only syncs cross nodes.
- Each pipeline is side by side, with partners that lend stash to each other next to each other.
- Each stage is within one node where possible.
- Each stage is spread evenly over all nodes, so that only syncs cross nodes.
- Nodes change at the cuts with the cheapest sends, for a partition.

Each also comes with its ranks on the rails of their sends, where others are slower.

Where GPUs differ, consecutive ranks come first, then the kinds of GPUs one after the other.
"""

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from autopart.bounds.rank_assignments import Inside, assignments_of, takes_gpus_in_order
from autopart.cost.cuts import stage_totals
from autopart.cost.lending import lending_pairs
from autopart.cost.links import link_across
from autopart.cost.rails import on_own_rails
from autopart.cost.stage_times import traffic_times
from autopart.records.cluster import Cluster, group_of, num_gpus
from autopart.records.layouts import (
    Layout,
    Partition,
    StageRanks,
    has_virtual_stages,
    nodes_and_gpus,
    windows,
)
from autopart.records.problem import Problem

MOST_ORDERS = 24
"""Orders of the kinds of GPUs that are tried: all orders of four kinds."""

MORE_GROUPS = 2
"""Groups of stages that are tried beyond the fewest possible."""


def likely_layouts(problem: Problem, layout: Layout, partition: Partition | None) -> list[Layout]:
    """The layout on likely assignments, its own first, each once.

    The last kind needs a partition with sends to compare.
    """
    cluster = problem.cluster
    if takes_gpus_in_order(problem) or (cluster.num_nodes == 1 and not cluster.gpus):
        return [layout]
    # Stages with the same ranks, in any order, are one place.
    own = list({frozenset(ranks): ranks for ranks in reversed(layout.stage_ranks)}.values())[::-1]
    found = [layout]
    counts = [len(ranks) for ranks in own]
    likely = [*(_of_kinds if cluster.gpus else _regular)(cluster, counts)]
    if lending_pairs(layout):
        likely.append(_partners_together(counts[0], len(counts)))
    for place in likely:
        olds, news = itertools.chain(*own), itertools.chain(*place)
        renamed = dict(zip(olds, news, strict=True))
        ranks = tuple(tuple(map(renamed.__getitem__, on)) for on in layout.stage_ranks)
        found.append(msgspec.structs.replace(layout, stage_ranks=ranks))
    if partition is not None and not has_virtual_stages(layout) and not cluster.gpus:
        found += _at_cheap_cuts(problem, layout, partition)
    for one in list(found):
        own_rails = on_own_rails(cluster, one.stage_ranks)
        if own_rails is not one.stage_ranks:
            found.append(msgspec.structs.replace(one, stage_ranks=own_rails))
    differing: dict[object, Layout] = {}
    for one in found:
        differing.setdefault(nodes_and_gpus(problem.cluster, one.stage_ranks), one)
    return list(differing.values())


def _of_kinds(cluster: Cluster, counts: Sequence[int]) -> Iterator[StageRanks]:
    """Consecutive ranks from each rank on, and ranks kind by kind, in each order of the kinds."""
    yield from windows(cluster, counts)
    kinds = sorted({group_of(cluster, rank) for rank in range(num_gpus(cluster))})
    ends = list(itertools.accumulate(counts))
    for order in itertools.islice(itertools.permutations(kinds), MOST_ORDERS):
        ranks = sorted(
            range(num_gpus(cluster)), key=lambda rank: order.index(group_of(cluster, rank))
        )
        yield tuple(
            tuple(sorted(ranks[end - count : end])) for end, count in zip(ends, counts, strict=True)
        )


def _regular(cluster: Cluster, counts: Sequence[int]) -> Iterator[StageRanks]:
    """Ranks for each place, which has so many replicas, by rules that need no partition."""
    places, replicas = len(counts), counts[0]
    if len(set(counts)) == 1:
        yield tuple(tuple(range(p, places * replicas, places)) for p in range(places))
    yield _within_nodes(cluster, counts)
    if all(count % cluster.num_nodes == 0 for count in counts):
        yield _over_nodes(cluster, counts)


def _partners_together(replicas: int, places: int) -> StageRanks:
    """Each pipeline on consecutive ranks, in the order 0, k - 1, 1, k - 2, ... of its stages."""
    turns = [at // 2 if at % 2 == 0 else places - 1 - at // 2 for at in range(places)]
    return tuple(
        tuple(range(turns.index(stage), places * replicas, places)) for stage in range(places)
    )


def _within_nodes(cluster: Cluster, counts: Sequence[int]) -> StageRanks:
    """Each place on the first node with enough free ranks, else on any free ranks; largest first."""
    free = list(_node_ranks(cluster))
    found: list[tuple[int, ...]] = [()] * len(counts)
    # For each size, nodes below the pointer have no room for it, now and later.
    start: dict[int, int] = {}
    # Large places choose first: they find room within one node less often.
    for place in sorted(range(len(counts)), key=lambda at: -counts[at]):
        count, taken = counts[place], list[int]()
        node = start.get(count, 0 if count <= cluster.gpus_per_node else len(free))
        while node < len(free) and len(free[node]) < count:
            node += 1
        start[count] = node
        some = range(start.get(0, 0), len(free)) if node == len(free) else (node,)
        for node in some:
            left = count - len(taken)
            taken += free[node][:left]
            free[node] = free[node][left:]
            if len(taken) == count:
                break
        while start.setdefault(0, 0) < len(free) and not free[start[0]]:
            start[0] += 1
        found[place] = tuple(taken)
    return tuple(found)


def _over_nodes(cluster: Cluster, counts: Sequence[int]) -> StageRanks:
    """Each place's rank i on node i mod nodes, so that microbatch m stays on node m mod nodes."""
    free = [iter(ranks) for ranks in _node_ranks(cluster)]
    return tuple(tuple(next(free[i % len(free)]) for i in range(count)) for count in counts)


def _node_ranks(cluster: Cluster) -> list[range]:
    size = cluster.gpus_per_node
    return [range(node * size, node * size + size) for node in range(cluster.num_nodes)]


def _at_cheap_cuts(problem: Problem, layout: Layout, partition: Partition) -> Iterator[Layout]:
    """Nodes change where a send between nodes costs the fewest seconds more, for a partition."""
    cluster, counts = problem.cluster, [len(ranks) for ranks in layout.stage_ranks]
    sent = [totals.sent for totals in stage_totals(problem.graph, partition)[:-1]]
    more = [
        sum(traffic_times(one, link_across(cluster))) - sum(traffic_times(one, cluster.intra_node))
        for one in sent
    ]
    tree = assignments_of(problem, layout)
    # Either all replicas of a group share a node, or each replica has a node of its own.
    for sizes, syncs in ((counts, tree.root.syncs), ([1] * len(counts), frozenset[int]())):
        for ends in _groups(sizes, more, cluster.gpus_per_node):
            inside = Inside(tree.root.cuts - ends, syncs, tree.root.tied)
            for kept in dict.fromkeys((inside, inside._replace(tied=frozenset()))):
                assigned = tree.on_nodes(kept)
                if assigned is not None:
                    yield assigned
                    break


def _groups(
    sizes: Sequence[int], more: Sequence[float], room: int
) -> Iterator[frozenset[tuple[int, int]]]:
    """The cuts between groups of stages, cheapest first for each number of groups.

    `sizes` are ranks per stage, and a group has at most `room`. `more` has the seconds that a cut
    costs between groups.

    C(g, j) is the cheapest division of the first j stages into g groups:

        C(g, j) = min { C(g - 1, i) + more of the cut before stage i :  stages i to j - 1 have room }

    O(k² g) for k stages.
    """
    k, before = len(sizes), [0, *itertools.accumulate(sizes)]
    costs: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(float("inf"), 0)] * k]
    tried = 0
    while len(costs) <= k and tried <= MORE_GROUPS:
        # Step 1: one group more.
        last = costs[-1]
        costs.append(
            [(float("inf"), 0)]
            + [
                min(
                    (last[i][0] + (more[i - 1] if i else 0.0), i)
                    for i in range(j)
                    if before[j] - before[i] <= room or i == j - 1
                )
                for j in range(1, k + 1)
            ]
        )
        # Step 2: where it reaches the last stage, follow the choices back.
        if costs[-1][k][0] < float("inf"):
            tried += 1
            ends, at = set[tuple[int, int]](), k
            for row in reversed(costs[1:]):
                at = row[at][1]
                if at:
                    ends.add((at - 1, at))
            yield frozenset(ends)
