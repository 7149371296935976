"""GPUs of several kinds for groups of ranks, where each place has a cap.

A rank's GPU has at least the speed and the memory of its place's cap. So a stage there is no slower
than the cap says, and fits wherever the cap lets it fit.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from autopart.bounds.rank_groups import Cap
from autopart.records.cluster import Cluster, group_of, num_gpus

Groups = Sequence[Sequence[int]]

MOST_STEPS = 20_000
"""Choices of a GPU for a rank before the search for GPUs gives up."""


def kinds_of(cluster: Cluster) -> list[Cap]:
    """The different GPUs, each once."""
    return list(dict.fromkeys(Cap(one.speed, one.memory_bytes) for one in cluster.gpus))


def best_cap(cluster: Cluster) -> Cap:
    """The highest speed and the most memory, not always on one GPU."""
    kinds = kinds_of(cluster)
    return Cap(max(one.speed for one in kinds), max(one.memory_bytes for one in kinds))


def lower_caps(cluster: Cluster, cap: Cap) -> list[Cap]:
    """The next lower speed with the same memory, and the next lower memory with the same speed."""
    kinds = kinds_of(cluster)
    slower = [one.speed for one in kinds if one.speed < cap.speed]
    smaller = [one.memory_bytes for one in kinds if one.memory_bytes < cap.memory_bytes]
    found = [Cap(max(slower), cap.memory_bytes)] if slower else []
    return found + ([Cap(cap.speed, max(smaller))] if smaller else [])


def places_in_want(cluster: Cluster, caps: Sequence[Cap], counts: Sequence[int]) -> list[int]:
    """A few places that too few GPUs suit together, by the numbers of GPUs alone; empty without any.

    `counts` are the ranks on each place.
    """
    supply = Counter(Cap(one.speed, one.memory_bytes) for one in _each_gpu(cluster))
    different = list(dict.fromkeys(caps))
    for size in range(1, len(different) + 1):
        for chosen in itertools.combinations(different, size):
            suited = sum(
                count for gpu, count in supply.items() if any(_suits(gpu, cap) for cap in chosen)
            )
            # By Hall's theorem, every place finds its GPUs where no choice of caps wants too many.
            wanted, places = 0, list[int]()
            for at, cap in enumerate(caps):
                if cap in chosen:
                    places.append(at)
                    wanted += counts[at]
                    if wanted > suited:
                        return places
    return []


class Matching(NamedTuple):
    """The answer to whether the GPUs suit some groups."""

    gpus: dict[int, int] | None
    """The GPU for each rank; None where none were found."""
    certain: bool
    """Whether the answer is proven."""


def match_gpus(cluster: Cluster, groups: Groups, cap_of: dict[int, Cap]) -> Matching:
    """A GPU for each rank, each group within a node.

    `cap_of` has the cap for each rank.
    """
    # Large groups find room on fewer nodes, and high caps are suited by fewer GPUs: they choose first.
    order = sorted(
        groups, key=lambda own: (len(own), max(cap_of[rank] for rank in own)), reverse=True
    )
    search = _GpuSearch(cluster, order, cap_of)
    found = search.matched(0)
    return Matching(search.gpus if found else None, certain=found or search.steps < MOST_STEPS)


class _GpuSearch:
    """Depth-first search: each group takes a node, each rank there the least GPU that suits it."""

    def __init__(self, cluster: Cluster, groups: Groups, cap_of: dict[int, Cap]) -> None:
        self.cap_of, self.gpus, self.steps = cap_of, dict[int, int](), 0
        self.groups = [sorted(own, key=lambda rank: cap_of[rank], reverse=True) for own in groups]
        kinds, size = _each_gpu(cluster), cluster.gpus_per_node
        self.free: list[dict[Cap, list[int]]] = []
        """For each node the free GPUs of each kind."""
        for node in range(cluster.num_nodes):
            own: dict[Cap, list[int]] = {}
            for gpu in range(node * size, node * size + size):
                own.setdefault(kinds[gpu], []).append(gpu)
            self.free.append(own)

    def matched(self, at: int) -> bool:
        """Whether the groups from `at` on find GPUs beside those that are taken."""
        if at == len(self.groups):
            return True
        tried = set[object]()
        for node in self.free:
            # Nodes with the same free GPUs are alike.
            alike = tuple(sorted((kind, len(own)) for kind, own in node.items()))
            if alike not in tried:
                tried.add(alike)
                if self._matched_on(node, at, 0):
                    return True
        return False

    def _matched_on(self, node: dict[Cap, list[int]], at: int, place: int) -> bool:
        """`matched`, where the group's ranks from `place` on take GPUs on a node."""
        if place == len(self.groups[at]):
            return self.matched(at + 1)
        rank = self.groups[at][place]
        for kind in sorted(node):
            self.steps += 1
            if self.steps >= MOST_STEPS:
                return False
            if node[kind] and _suits(kind, self.cap_of[rank]):
                self.gpus[rank] = node[kind].pop(0)
                if self._matched_on(node, at, place + 1):
                    return True
                node[kind].insert(0, self.gpus.pop(rank))
        return False


def _suits(gpu: Cap, cap: Cap) -> bool:
    return gpu.speed >= cap.speed and gpu.memory_bytes >= cap.memory_bytes


def _each_gpu(cluster: Cluster) -> list[Cap]:
    """The GPU of each rank."""
    groups = [Cap(one.speed, one.memory_bytes) for one in cluster.gpus]
    return [groups[group_of(cluster, rank)] for rank in range(num_gpus(cluster))]
