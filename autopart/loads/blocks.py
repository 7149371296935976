"""Blocks of nodes that must share a device, and dnn-partitioning's loads of many stages at once.

A block is a group of nodes (a colour, or a node without one); groups in a circle of the contiguity
order are one block. Formula (1) of autopart/loads/dnn_partitioning.py then reads, for a set S of blocks:

    accelerator(S) = sum of work over S + sum of the costs of all links that S splits

A link is what a node and the readers of its output are, in blocks: S splits it where it holds some, not
all of them. Blocks stand in a topological order, links of the same blocks are one.

Solvers count in whole numbers: latencies and costs are multiples of one quantum, a power of two, so
small that the largest load that matters, the span, is 2**51 to 2**52 quanta. Sums are then exact in any
order and monotone under inclusion; rounding changes a load by at most half a quantum for each block and
link in it. What is above the span counts as CLIPPED: no split within the span has it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import numpy as np
import numpy.typing as npt

from autopart.loads.dnn_partitioning import Group, Instance, Node, group_edges, group_of

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

LOAD_BITS = 52
TOO_MUCH = 1 << 60
"""The load of a stage that may not be: too large, or with a block that cannot run there."""

CLIPPED = 1 << 53
"""The most that a single latency or cost counts."""

ROUNDING = 1e-10
"""Relative error of a largest load that is fine."""

WORD = 64


class Link(NamedTuple):
    """The blocks of a node and of its readers, ascending, two at least; and the cost to move it."""

    blocks: tuple[int, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """The whole graph as blocks in a topological order."""

    members: tuple[tuple[int, ...], ...]
    """Node ids of each block."""
    work: tuple[float, ...]
    """Latency on an accelerator."""
    cpu_work: tuple[float, ...]
    sizes: tuple[float, ...]
    on_accelerator: tuple[bool, ...]
    before: tuple[tuple[int, ...], ...]
    """The blocks that must stand on no later device."""
    links: tuple[Link, ...]
    """Those that cost something."""


def blocks_of(instance: Instance, *, contiguous: bool = True) -> Blocks:
    """The blocks of an instance; where splits need not be contiguous, without an order."""
    graph: nx.DiGraph[Group] = nx.DiGraph()
    graph.add_nodes_from(dict.fromkeys(group_of(node) for node in instance.nodes))
    if contiguous:
        graph.add_edges_from(group_edges(instance))
    joined: nx.DiGraph[int] = nx.condensation(graph)
    component: dict[Group, int] = joined.graph["mapping"]
    order = depth_first_order([tuple(joined.predecessors(b)) for b in joined])
    place = {block: index for index, block in enumerate(order)}
    home = {node.id: place[component[group_of(node)]] for node in instance.nodes}
    members: list[list[Node]] = [[] for _ in order]
    for node in instance.nodes:
        members[home[node.id]].append(node)
    ends: dict[int, set[int]] = {}
    for source, target in instance.edges:
        ends.setdefault(source, {home[source]}).add(home[target])
    return Blocks(
        members=tuple(tuple(node.id for node in row) for row in members),
        work=tuple(math.fsum(node.accelerator_latency for node in row) for row in members),
        cpu_work=tuple(math.fsum(node.cpu_latency for node in row) for row in members),
        sizes=tuple(math.fsum(node.size for node in row) for row in members),
        on_accelerator=tuple(all(node.on_accelerator for node in row) for row in members),
        before=tuple(
            tuple(sorted(place[p] for p in joined.predecessors(block))) for block in order
        ),
        links=joined_links((blocks, instance.costs[u]) for u, blocks in ends.items()),
    )


def joined_links(found: Iterable[tuple[Iterable[int], float]]) -> tuple[Link, ...]:
    """Links in ascending order: those of one block or without a cost left out, equal ones added up."""
    costs: dict[tuple[int, ...], list[float]] = {}
    for blocks, cost in found:
        ends = tuple(sorted(set(blocks)))
        if len(ends) > 1 and cost > 0:
            costs.setdefault(ends, []).append(cost)
    return tuple(Link(ends, math.fsum(costs[ends])) for ends in sorted(costs))


def depth_first_order(before: Sequence[Sequence[int]]) -> list[int]:
    """A topological order that goes on with what the last block has made possible."""
    after: list[list[int]] = [[] for _ in before]
    waiting = [len(set(row)) for row in before]
    for block, row in enumerate(before):
        for earlier in set(row):
            after[earlier].append(block)
    ready = [block for block in reversed(range(len(before))) if not waiting[block]]
    order: list[int] = []
    while ready:
        order.append(ready.pop())
        for later in reversed(after[order[-1]]):
            waiting[later] -= 1
            if not waiting[later]:
                ready.append(later)
    return order


class BlockLoads:
    """The loads of blocks in quanta; everything that is said of a stage comes from here."""

    def __init__(self, blocks: Blocks, size_limit: float, span: float | None = None) -> None:
        """`span` is what accelerators could have to bear at most where it is not given."""
        self.blocks, self.limit = blocks, size_limit
        usable = np.array(blocks.on_accelerator, dtype=bool)
        if span is None:
            bearable = [w for w, can in zip(blocks.work, usable, strict=True) if can]
            span = math.fsum(bearable) + math.fsum(link.cost for link in blocks.links)
        self.scale = 2.0 ** (LOAD_BITS - math.frexp(span)[1]) if span else 1.0
        """Quanta for one unit of the file's time."""
        work = self._whole(blocks.work)
        usable &= work < CLIPPED
        self.work = np.where(usable, work, 0)
        self.cpu_work = self._whole(blocks.cpu_work)
        self.costs = self._whole([link.cost for link in blocks.links])
        linked = np.zeros(len(self.work), dtype=np.int64)
        for link, cost in zip(blocks.links, self.costs.tolist(), strict=True):
            linked[list(link.blocks)] += cost
        self.alone = self.work + linked
        """The load of an accelerator that holds one block only."""
        self.heavy = self.work >= linked
        """Blocks without which a stage never has a larger load: their work is at least what they split."""
        self.barred = (~usable).astype(np.int64)
        """1 where a block cannot run on an accelerator."""
        largest = math.fsum(blocks.sizes)
        size_scale = 2.0 ** (60 - math.frexp(largest)[1]) if largest else 1.0
        sizes = np.ceil(np.array(blocks.sizes) * size_scale).astype(np.int64)
        self.sizes = np.where(usable, sizes, 0)
        self.size_limit = math.floor(min(size_limit, 2 * largest) * size_scale)
        self.binding = int(self.sizes.sum()) > self.size_limit

    def _whole(self, values: Sequence[float]) -> Ints:
        scaled = np.rint(np.array(values, dtype=float) * self.scale)
        return np.minimum(scaled, CLIPPED).astype(np.int64)

    def is_fine_for(self, time: float) -> bool:
        """Whether a largest load of `time` is known well enough in quanta."""
        terms = len(self.work) + len(self.costs)
        return terms / 2 / self.scale <= ROUNDING * time

    def quanta(self, time: float) -> int:
        """The smallest whole number of quanta that is no less than `time`."""
        return math.ceil(time * self.scale)

    def time(self, quanta: int) -> float:
        """The file's time for a number of quanta."""
        return quanta / self.scale

    def intervals(self, order: Sequence[int], cuts: Ints) -> tuple[Ints, Ints]:
        """Loads on an accelerator and on a CPU of the blocks order[cuts[i] : cuts[j]], at [i, j] for
        i <= j; `cuts` are ascending places, 0 and the last one among them."""
        at = np.array(order, dtype=np.int64)
        piece = np.empty(len(order), dtype=np.int64)
        piece[at] = np.searchsorted(cuts, np.arange(len(order)), side="right") - 1
        loads = self._split_costs(piece, len(cuts))
        prefix = _prefix(self.work[at])[cuts]
        loads += prefix[None, :] - prefix[:, None]
        sizes, barred = _prefix(self.sizes[at])[cuts], _prefix(self.barred[at])[cuts]
        too_large = sizes[None, :] - sizes[:, None] > self.size_limit
        loads[too_large | (barred[None, :] > barred[:, None])] = TOO_MUCH
        cpu = _prefix(self.cpu_work[at])[cuts]
        return loads, cpu[None, :] - cpu[:, None]

    def _split_costs(self, piece: Ints, size: int) -> Ints:
        """The costs of the links that the pieces i … j - 1 split, at [i, j]; `piece` is each block's."""
        change = np.zeros((size + 1, size + 1), dtype=np.int64)

        def add(first: int, last: int, low: int, high: int, cost: int) -> None:
            """To i in first … last - 1 and j in low … high - 1."""
            change[first, low] += cost
            change[first, high] -= cost
            change[last, low] -= cost
            change[last, high] += cost

        for link, cost in zip(self.blocks.links, self.costs.tolist(), strict=True):
            ends = np.sort(piece[list(link.blocks)]).tolist()
            add(0, size, 0, size, cost)
            for low, high in zip([-1, *ends], [*ends, size - 1], strict=True):
                add(low + 1, high + 1, low + 1, high + 1, -cost)  # holds none
            add(0, ends[0] + 1, ends[-1] + 1, size, -cost)  # holds all
        return change.cumsum(axis=0).cumsum(axis=1)[:size, :size]


def _prefix(values: Ints) -> Ints:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])
