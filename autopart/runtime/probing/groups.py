"""Which groups of ranks, and which pairs, a probe of the network measures.

Rank r sits on node r // per_node. Ranks with the same place on their nodes share a rail.
"""

from collections.abc import Iterator
from typing import NamedTuple

from autopart.records.readings import Measured, Path
from autopart.runtime.probing.ranks import Ranks
from autopart.text import counted

Pair = tuple[int, int]


class GroupTask(NamedTuple):
    """One collective over groups of one shape."""

    collective: Measured
    groups: tuple[tuple[int, ...], ...]
    """All groups that run it at once."""
    nodes: int
    """Nodes on which each group lies."""
    at_once: int
    """Groups on the same nodes."""

    def __str__(self) -> str:
        count = f"{self.at_once} x " if self.at_once > 1 else ""
        ranks = counted(len(self.groups[0]), "rank")
        return (
            f"{self.collective.replace('_', '-')}, {count}{ranks} on {counted(self.nodes, 'node')}"
        )


class SendTask(NamedTuple):
    """Sends over one kind of path."""

    path: Path
    pairs: tuple[Pair, ...]
    at_once: int
    """Ranks of each node that send or receive at once."""

    def __str__(self) -> str:
        return f"send, {self.path}, {self.at_once} at once"


def tasks(ranks: Ranks) -> list[GroupTask | SendTask]:
    """All measurements, those first that the network record needs most."""
    nodes, room = ranks.num_nodes, ranks.per_node
    # Rails: one GPU of each node, alone and all at once. Then the largest groups.
    rails = [(1, nodes, room), (1, nodes, 1)]
    large = [(room, nodes, 1), (room, 1, 1)]
    # Then what plans use besides: parts of nodes, and pairs of nodes.
    parts = [(n, 1, room // n) for n in (2, 4) if n < room]
    parts += [(room // 2, nodes, 2)] if room > 2 else []
    parts += [(room, 2, 1), (1, 2, room)] if nodes > 2 else []
    found: list[GroupTask | SendTask] = []
    for collective in ("all_gather", "all_reduce"):
        found += _groups(collective, rails + large, ranks)
    found += _sends(ranks)
    for collective in ("all_gather", "all_reduce"):
        found += _groups(collective, parts, ranks)
    found += _groups("all_to_all", [(1, nodes, room), *large], ranks)
    return list({str(task): task for task in found}.values())


def _groups(
    collective: Measured, shapes: list[tuple[int, int, int]], ranks: Ranks
) -> Iterator[GroupTask]:
    """Tasks over shapes: ranks on each node, nodes, and groups on the same nodes."""
    for per_node, nodes, at_once in shapes:
        if per_node * nodes < 2:
            continue
        groups = tuple(
            tuple(
                node * ranks.per_node + place
                for node in range(first, first + nodes)
                for place in range(index * per_node, (index + 1) * per_node)
            )
            # Several sets of nodes run it at once, since they share nothing.
            for first in range(0, ranks.num_nodes - nodes + 1, nodes)
            for index in range(at_once)
        )
        yield GroupTask(collective, groups, nodes, at_once)


def _sends(ranks: Ranks) -> Iterator[SendTask]:
    room = ranks.per_node
    if room > 1:
        starts = range(0, ranks.size, room)
        yield SendTask("same node", tuple((s, s + 1) for s in starts), 2)
        if room > 3:
            inside = tuple(
                (s + place, s + place + 1) for s in starts for place in range(0, room - 1, 2)
            )
            yield SendTask("same node", inside, room // 2 * 2)
    for at_once in sorted({1, room}):
        yield SendTask("same rail", tuple(_over(ranks, at_once, 0)), at_once)
        if room > 1:
            yield SendTask("other rail", tuple(_over(ranks, at_once, 1)), at_once)


def _over(ranks: Ranks, at_once: int, shift: int) -> Iterator[Pair]:
    """Pairs between every second node and its next one, whose places differ by `shift`."""
    for node in range(0, ranks.num_nodes - 1, 2):
        for place in range(at_once):
            other = (place + shift) % ranks.per_node
            yield node * ranks.per_node + place, (node + 1) * ranks.per_node + other
