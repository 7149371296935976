"""A process's part in tensor groups: its shards, and how groups of different sizes meet.

With one tensor degree all processes at one place of their groups are a world of their own, which runs the
plan as if each group were one rank. With several degrees torch's default process group has all processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autopart.runtime.engine.resharded_transfers import Cut
from autopart.runtime.sharding.rank_shards import RankShards
from autopart.runtime.sharding.shard_groups import ShardGroup
from autopart.runtime.update.gradient_sum import Holders


@dataclass(frozen=True, slots=True)
class OneWorld:
    """All processes of all tensor groups, in torch's default process group."""

    rank: int
    """This process's rank in the plan: its tensor group."""
    place: int
    """Its place in the group, from 0."""
    processes: Sequence[range]
    """The processes of each rank, in the order of their places."""
    cuts: Sequence[Cut]

    @property
    def process(self) -> int:
        """This process's number in the world."""
        return self.processes[self.rank][self.place]

    def places(self, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        """The processes at each place of ranks with one degree; none where their degrees differ."""
        if len({len(self.processes[rank]) for rank in ranks}) > 1:
            return []
        return list(zip(*(self.processes[rank] for rank in ranks), strict=True))

    def equal_holders(self, holders: Sequence[Holders]) -> list[Holders]:
        """Holders whose groups have one size, as processes: one entry for each place."""
        return [Holders(own, names) for ranks, names in holders for own in self.places(ranks)]

    def unequal_holders(self, holders: Sequence[Holders]) -> list[Holders]:
        """Holders of tied parameters whose groups differ in size, as all their processes."""
        return [
            Holders(tuple(sorted(p for rank in ranks for p in self.processes[rank])), names)
            for ranks, names in holders
            if not self.places(ranks)
        ]


@dataclass(frozen=True, slots=True)
class DataPart:
    """How the d processes of a rank share its state."""

    group: ShardGroup
    shard: Literal["zero2", "zero3"]
    reduce: Literal["microbatch", "step"]
    loss_share: float
    """The factor of each process's loss in the microbatch's: 1/d for a mean, 1 for a sum."""


@dataclass(frozen=True, slots=True)
class GroupPart:
    """A process's part in the rank groups of a plan."""

    shards: RankShards | None = None
    """Its shards; None where its own rank has tensor degree 1."""
    world: OneWorld | None = None
    """None where the plan has one tensor degree."""
    data: DataPart | None = None
    """None where the processes of a rank share no state by samples."""


NO_GROUPS = GroupPart()
"""The part of a process that is a rank by itself."""
