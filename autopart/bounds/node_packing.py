"""Groups of ranks on nodes: which groups find room together.

Each group must lie within one node. Nodes are alike, and GPUs may stay idle.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MOST_STATES = 20_000
"""Remainders that the exact search looks at before it gives up."""

Remainder = tuple[tuple[int, int], ...]
"""Groups that have no node yet: (size, how many), largest size first."""


class Packing(NamedTuple):
    """The answer to whether some groups find room."""

    nodes: list[int] | None
    """A node for each group, counted in the order of their first use; None where none was found."""
    certain: bool
    """Whether the answer is proven: a packing, or none."""


def pack_nodes(sizes: Sequence[int], num_nodes: int, room: int) -> Packing:
    """Nodes for groups with `sizes` ranks, on nodes with `room` GPUs each."""
    if max(sizes) > room or sum(sizes) > num_nodes * room:
        return Packing(None, certain=True)
    if len(set(sizes)) == 1:
        # Equal groups fill node after node.
        per_node = room // sizes[0]
        enough = len(sizes) <= num_nodes * per_node
        nodes = [at // per_node for at in range(len(sizes))] if enough else None
        return Packing(nodes, certain=True)
    # Step 1: quick rules. The groups' own order comes first, since it keeps neighbours together.
    found = _first_fit(sizes, range(len(sizes)), min(num_nodes, len(sizes)), room)
    if found is None:
        largest_first = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        found = _first_fit(sizes, largest_first, min(num_nodes, len(sizes)), room)
    if found is not None:
        return Packing(_in_order_of_use(found), certain=True)
    # Step 2: the exact search, node by node.
    search = _ExactPacking(room)
    fillings = search.fillings(_remainder(sizes), num_nodes)
    if fillings is None:
        return Packing(None, certain=not search.gave_up)
    return Packing(_in_order_of_use(_as_told(sizes, fillings)), certain=True)


def _first_fit(
    sizes: Sequence[int], order: Sequence[int], num_nodes: int, room: int
) -> list[int] | None:
    """The first node with room for each group, in the given order."""
    free = [room] * num_nodes
    # For each size, nodes below the pointer have no room for it, now and later.
    start: dict[int, int] = {}
    found = [0] * len(sizes)
    for at in order:
        size = sizes[at]
        node = start.get(size, 0)
        while node < num_nodes and free[node] < size:
            node += 1
        start[size] = node
        if node == num_nodes:
            return None
        free[node] -= size
        found[at] = node
    return found


def _in_order_of_use(nodes: Sequence[int]) -> list[int]:
    names = {node: at for at, node in enumerate(dict.fromkeys(nodes))}
    return list(map(names.__getitem__, nodes))


def _remainder(sizes: Sequence[int]) -> Remainder:
    return tuple(sorted(Counter(sizes).items(), reverse=True))


def _as_told(sizes: Sequence[int], fillings: Sequence[Counter[int]]) -> list[int]:
    """The node for each group, where each filling has the sizes on one node."""
    places: dict[int, list[int]] = {}
    for node, filling in enumerate(fillings):
        for size, count in filling.items():
            places.setdefault(size, []).extend([node] * count)
    return [places[size].pop(0) for size in sizes]


class _ExactPacking:
    """Depth-first search: each node takes the largest group left, and others beside it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.gave_up = False
        self._fewest: dict[Remainder, int] = {}
        """For remainders without a packing, the most nodes that were too few."""

    def fillings(self, left: Remainder, num_nodes: int) -> list[Counter[int]] | None:
        """The sizes on each node; None where no packing was found."""
        if not left:
            return []
        if num_nodes == 0 or self._fewest.get(left, 0) >= num_nodes:
            return None
        if len(self._fewest) >= MOST_STATES:
            self.gave_up = True
            return None
        # The largest group goes somewhere: nodes are alike, so it may be on this one.
        largest = left[0][0]
        for beside in self._beside(_without(left, Counter([largest])), self.room - largest):
            filling = beside + Counter([largest])
            rest = self.fillings(_without(left, filling), num_nodes - 1)
            if rest is not None:
                return [filling, *rest]
        if not self.gave_up:
            self._fewest[left] = num_nodes
        return None

    def _beside(self, left: Remainder, room: int) -> Iterator[Counter[int]]:
        """Choices of groups that fill `room` so far that no other group fits."""
        at = next((at for at, (size, _) in enumerate(left) if size <= room), None)
        if at is None:
            yield Counter()
            return
        size, count = left[at]
        smaller = left[at + 1 :]
        for taken in range(min(count, room // size), -1, -1):
            for others in self._beside(smaller, room - taken * size):
                chosen = others + Counter({size: taken})
                # A group that still fits could join without harm to any other packing.
                if taken == count or room - sum(s * n for s, n in chosen.items()) < size:
                    yield chosen


def _without(left: Remainder, taken: Counter[int]) -> Remainder:
    reduced = ((size, count - taken[size]) for size, count in left)
    return tuple((size, count) for size, count in reduced if count)
