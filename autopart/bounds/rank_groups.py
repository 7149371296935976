"""Groups of ranks that share a node, by the links that may lie within one.

A place is a list of ranks, one per replica, with one stage or more. Two places may have the same ranks
in another order. A cut joins two places, replica by replica. A sync joins all ranks on one place. A tied sync joins all ranks on two places, or joins
them replica by replica (autopart/cost/tied_syncs.py).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Pair = tuple[int, int]
"""Two places, the smaller one first."""


class Cap(NamedTuple):
    """The most that the GPUs on one place give."""

    speed: float
    """Speed of the slowest one, relative to the profile's device."""
    memory_bytes: int
    """Bytes on the smallest one."""


class Inside(NamedTuple):
    """The links that may lie within a node. A place is a list of ranks with one stage or more."""

    cuts: frozenset[Pair]
    """Pairs of places with a cut between them, or that lend stash to each other."""
    syncs: frozenset[int]
    """Places with replicas."""
    tied: frozenset[Pair]
    """Pairs of places that may share a tied parameter."""
    caps: tuple[Cap, ...] = ()
    """For each place its cap; empty where GPUs are alike."""

    def without(self, other: "Inside") -> "Inside":
        """The links that `other` does not have."""
        return Inside(
            self.cuts - other.cuts, self.syncs - other.syncs, self.tied - other.tied, self.caps
        )


class RankGroups:
    """The groups among the ranks on some places."""

    def __init__(self, places: Sequence[tuple[int, ...]], *, ties_by_replica: bool = False) -> None:
        self.places = places
        self._ties_by_replica = ties_by_replica
        counts = {len(ranks) for ranks in places}
        at_rank: dict[int, list[tuple[int, int]]] = {}
        for at, own in enumerate(places):
            for replica, rank in enumerate(own):
                at_rank.setdefault(rank, []).append((at, replica))
        self._same = [own for own in at_rank.values() if len(own) > 1]
        """The (place, replica) of each rank on several places."""
        self._alike = len(counts) == 1 and max(counts) > 2 and not self._same
        """Whether all places have as many replicas, more than two, and ranks of their own."""
        self._latest: tuple[Inside, list[list[tuple[int, int]]]] | None = None

    def of(self, inside: Inside) -> list[tuple[int, ...]]:
        """The ranks that the links join, the first places first."""
        groups: list[tuple[int, ...]] = []
        for group in self._joined(inside):
            own = sorted({at for at, _ in group})
            if not self._alike:
                ranks = dict.fromkeys(self.places[at][replica] for at, replica in group)
                groups.append(tuple(ranks))
            elif len(group) > len(own):
                # Two replicas of one place share a node, so all do.
                groups.append(tuple(rank for at in own for rank in self.places[at]))
            elif group[0][1] == 0:
                groups += zip(*(self.places[at] for at in own), strict=True)
        return groups

    def sizes(self, inside: Inside) -> list[int]:
        """The number of ranks in each group of `of`."""
        sizes: list[int] = []
        replicas = len(self.places[0])
        for group in self._joined(inside):
            count = len({at for at, _ in group})
            if not self._alike:
                sizes.append(len({self.places[at][replica] for at, replica in group}))
            elif len(group) > count:
                sizes.append(count * replicas)
            elif group[0][1] == 0:
                sizes += [count] * replicas
        return sizes

    def joined_by(self, link: Inside) -> int:
        """The ranks in the largest group of one link alone."""
        counts = [len(ranks) for ranks in self.places]
        for a, b in link.cuts:
            return (counts[a] + counts[b]) // math.gcd(counts[a], counts[b])
        for a, b in link.tied:
            together = len({*self.places[a], *self.places[b]})
            return 2 if self._by_replica((a, b)) else together
        return max(counts[at] for at in link.syncs)

    def _by_replica(self, pair: Pair) -> bool:
        """Whether a tied sync joins two places replica by replica."""
        alike = len(self.places[pair[0]]) == len(self.places[pair[1]])
        return self._ties_by_replica and alike

    def _joined(self, inside: Inside) -> list[list[tuple[int, int]]]:
        """`_find_joined`; the latest answer is at hand."""
        if self._latest is None or self._latest[0] != inside:
            self._latest = inside, self._find_joined(inside)
        return self._latest[1]

    def _find_joined(self, inside: Inside) -> list[list[tuple[int, int]]]:
        """The groups as (place, replica); where replicas are alike, only the first two of them."""
        shown = [range(2 if self._alike else len(own)) for own in self.places]
        joined = _Joined([(at, replica) for at, own in enumerate(shown) for replica in own])
        for same in self._same:
            joined.join(same)
        # Step 1: syncs join all ranks on a place, and tied syncs the ranks on both places.
        for at in inside.syncs:
            joined.join([(at, replica) for replica in shown[at]])
        for pair in inside.tied:
            if self._by_replica(pair):
                for replica in shown[pair[0]]:
                    joined.join([(at, replica) for at in pair])
            else:
                joined.join([(at, replica) for at in pair for replica in shown[at]])
        # Step 2: microbatch m goes from replica m mod r to replica m mod r': equal remainders meet.
        for pair in inside.cuts:
            turns = math.gcd(*(len(shown[at]) for at in pair))
            for turn in range(turns):
                joined.join([(at, one) for at in pair for one in shown[at][turn::turns]])
        return joined.groups()


class _Joined:
    """Groups of (place, replica), which joins make larger: each group knows its members."""

    def __init__(self, alone: Sequence[tuple[int, int]]) -> None:
        self._group = {one: [one] for one in alone}

    def join(self, members: Sequence[tuple[int, int]]) -> None:
        """Make one group of all groups with some of these members."""
        largest = self._group[members[0]]
        for one in members[1:]:
            group = self._group[one]
            if group is largest:
                continue
            if len(group) > len(largest):
                largest, group = group, largest
            largest += group
            for moved in group:
                self._group[moved] = largest

    def groups(self) -> list[list[tuple[int, int]]]:
        """All groups in order, each with its members in order."""
        different = {id(group): group for group in self._group.values()}
        return sorted(map(sorted, different.values()))


def each_link(inside: Inside) -> Iterator[Inside]:
    """Each link alone."""
    for pair in inside.cuts:
        yield Inside(frozenset([pair]), frozenset(), frozenset())
    for at in inside.syncs:
        yield Inside(frozenset(), frozenset([at]), frozenset())
    for pair in inside.tied:
        yield Inside(frozenset(), frozenset(), frozenset([pair]))


def sort_key(links: Inside) -> tuple[object, ...]:
    """Cuts come before syncs, and syncs before tied syncs; earlier places come first."""
    kind = 0 if links.cuts else 1 if links.syncs else 2
    return kind, sorted(links.cuts), sorted(links.syncs), sorted(links.tied)
