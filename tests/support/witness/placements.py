"""Every assignment of GPUs to a layout's ranks, told apart as far as it can matter.

A *slot* is a rank without a GPU yet. The price of a plan asks four things about the GPUs of its slots: the
links that a cut's sends use, whether a stage lies on several nodes, whether two stages together do, and the
kinds of GPUs in a stage. `Place` has these and nothing else, so assignments with one place have one price.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.records.cluster import Cluster

StageSlots = tuple[tuple[int, ...], ...]
"""For each stage its slots, one per replica."""


class Place(NamedTuple):
    """An assignment of GPUs to slots, as far as a price depends on it."""

    cuts: tuple[frozenset[str], ...]
    """For each cut the links that its sends use: "intra" and "inter"; none where no send leaves its rank."""
    spread: tuple[bool, ...]
    """For each stage, whether its ranks lie on several nodes."""
    pairs: frozenset[tuple[int, int]]
    """The pairs of stages whose ranks together lie on several nodes."""
    twins: frozenset[tuple[int, int]]
    """The pairs of stages with equally many replicas, where some replica's two ranks lie on two nodes."""
    groups: tuple[frozenset[int], ...]
    """For each stage the kinds of its GPUs, as places in `Cluster.gpus`."""
    kinds: tuple[tuple[int, ...], ...] = ()
    """Where replicas share their ranks and GPUs differ, each stage's kinds slot by slot."""
    nodes: tuple[tuple[int, ...], ...] = ()
    """With a network record, each stage's nodes slot by slot, counted in the order of their use."""


class Gpus(NamedTuple):
    """A cluster's GPUs, as far as placements depend on them."""

    per_node: int
    groups: tuple[int, ...]
    """Each rank's kind."""
    networked: bool = False
    """Whether the cluster has a network record."""
    rails: int = 1
    """Rails per node, where a send off its rail is slower."""

    def rail(self, rank: int) -> int:
        """The rail near a rank."""
        return rank % self.per_node * self.rails // self.per_node


def gpus_of(cluster: Cluster) -> Gpus:
    """The cluster's GPUs in rank order."""
    count = cluster.num_nodes * cluster.gpus_per_node
    kinds = [at for at, group in enumerate(cluster.gpus) for _ in range(group.count)]
    groups, network = tuple(kinds or [0] * count), cluster.network
    if network is None:
        return Gpus(cluster.gpus_per_node, groups)
    rails = network.rails if network.off_rail < 1.0 else 1
    return Gpus(cluster.gpus_per_node, groups, networked=True, rails=rails)


def place_on(gpus: Gpus, stage_ranks: Sequence[Sequence[int]]) -> Place:
    """The place of stages on given ranks."""
    node = [rank // gpus.per_node for rank in range(len(gpus.groups))]
    nodes = [{node[rank] for rank in ranks} for ranks in stage_ranks]
    cuts: list[frozenset[str]] = []
    for here, there in itertools.pairwise(stage_ranks):
        turns = range(math.lcm(len(here), len(there)))
        sends = {(here[m % len(here)], there[m % len(there)]) for m in turns}
        cuts.append(
            frozenset(
                "intra"
                if node[a] == node[b]
                else "inter"
                if gpus.rail(a) == gpus.rail(b)
                else "off rail"
                for a, b in sends
                if a != b
            )
        )
    used = list(dict.fromkeys(node[rank] for ranks in stage_ranks for rank in ranks))
    return Place(
        cuts=tuple(cuts),
        spread=tuple(len(own) > 1 for own in nodes),
        pairs=frozenset(
            (a, b)
            for a, b in itertools.combinations(range(len(nodes)), 2)
            if len(nodes[a] | nodes[b]) > 1
        ),
        twins=frozenset(
            (a, b)
            for a, b in itertools.combinations(range(len(nodes)), 2)
            if len(stage_ranks[a]) == len(stage_ranks[b])
            and any(
                node[one] != node[two]
                for one, two in zip(stage_ranks[a], stage_ranks[b], strict=True)
            )
        ),
        groups=tuple(frozenset(gpus.groups[rank] for rank in ranks) for ranks in stage_ranks),
        kinds=tuple(tuple(gpus.groups[rank] for rank in ranks) for ranks in stage_ranks)
        if len(set(gpus.groups)) > 1 and _replicas_share(stage_ranks)
        else (),
        nodes=tuple(tuple(used.index(node[rank]) for rank in ranks) for ranks in stage_ranks)
        if gpus.networked
        else (),
    )


def _replicas_share(stage_ranks: Sequence[Sequence[int]]) -> bool:
    turns = {(rank, turn) for ranks in stage_ranks for turn, rank in enumerate(ranks)}
    return len(turns) > len({rank for rank, _ in turns}) and len({*map(len, stage_ranks)}) == 1


def on_gpus(slots: StageSlots, ranks: Sequence[int]) -> StageSlots:
    """The ranks of each stage, where slot i is on `ranks[i]`."""
    return tuple(tuple(ranks[slot] for slot in own) for own in slots)


@functools.lru_cache(maxsize=4096)
def places(gpus: Gpus, slots: StageSlots) -> dict[Place, StageSlots]:
    """Every place over all assignments, each with one assignment that has it.

    GPUs of one kind on one node are alike: no field of `Place` tells them apart. So only the number of GPUs
    that each node and kind still has matters, and the first free one is taken.
    """
    count = 1 + max(slot for own in slots for slot in own)
    found: dict[Place, StageSlots] = {}
    for ranks in _assignments(gpus, count, ()):
        stage_ranks = on_gpus(slots, ranks)
        found.setdefault(place_on(gpus, stage_ranks), stage_ranks)
    return found


def _assignments(gpus: Gpus, count: int, taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(taken) == count:
        yield taken
        return
    free = [rank for rank in range(len(gpus.groups)) if rank not in taken]
    first_of_kind = {(r // gpus.per_node, gpus.groups[r], gpus.rail(r)): r for r in reversed(free)}
    for rank in sorted(first_of_kind.values()):
        yield from _assignments(gpus, count, (*taken, rank))


@functools.lru_cache(maxsize=4096)
def all_places(gpus: Gpus, slots: StageSlots) -> frozenset[Place]:
    """The same places from every permutation of all GPUs, without any symmetry. For tiny clusters."""
    count = 1 + max(slot for own in slots for slot in own)
    every = itertools.permutations(range(len(gpus.groups)), count)
    return frozenset(place_on(gpus, on_gpus(slots, ranks)) for ranks in every)


@functools.lru_cache(maxsize=4096)
def places_in_order(gpus: Gpus, slots: StageSlots) -> dict[Place, StageSlots]:
    """The places where slots lie on consecutive GPUs in their order, from any GPU on."""
    count = 1 + max(slot for own in slots for slot in own)
    found: dict[Place, StageSlots] = {}
    for first in range(len(gpus.groups) - count + 1):
        stage_ranks = on_gpus(slots, range(first, first + count))
        found.setdefault(place_on(gpus, stage_ranks), stage_ranks)
    return found
