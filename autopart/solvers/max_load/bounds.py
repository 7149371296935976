"""Lower bounds on the largest load of blocks on accelerators and CPUs, contiguous or not.

Symbols   T       a largest load, in quanta
          w, q    a block's work on an accelerator, and on a CPU
          K, M    accelerators and CPUs

Counting  K accelerators must be enough for all work that M CPUs cannot relieve them of
          (solvers/max_load/windows.py), and each block must run somewhere: T >= w, or T >= q on a CPU.

Packing   Blocks that no CPU can run within T, those of at least T / 8, must fit into K bins of T. Their
          work is rounded down to a few values, so that a bin holds one of few patterns; which
          multisets j bins can hold follows from those that j - 1 bins can. If the blocks are not among
          those of K bins, the largest load is above T.

Cut       The device of a block b that no CPU can run within T is an accelerator, and its load at least
          the smallest of all sets that contain b. Work plus split links is a cut function, so that
          the smallest is a minimum cut: from b, with an arc of capacity w from each block to the sink,
          and for each link two points, an arc of its cost between them, and unlimited arcs from its
          blocks to the first point and from the second point to its blocks.

Each takes a loads object and gives quanta; anyone can call them again on a file to check a bound.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from autopart.loads.blocks import BlockLoads, Flags
from autopart.loads.downsets import Sums
from autopart.solvers.max_load.windows import windows

SMALLEST_SHARE = 8
"""Packing looks at blocks of at least T over this."""

PATTERN_STATES = 6_000
"""Most multisets of blocks that packing tells apart."""

PRECISION = 1e-5
"""Packing stops when T is known to this share; what it gives is still a bound."""

HEAVIEST = 24
"""Blocks whose cuts are computed, those first that are heaviest with all their links."""


def counting_bound(loads: BlockLoads, num_accelerators: int, num_cpus: int) -> int:
    """The smallest T that counting allows."""
    cpu = loads.cpu_work if num_cpus else np.full_like(loads.cpu_work, 1 << 60)
    alone = np.where(loads.barred > 0, cpu, np.minimum(loads.work, cpu))
    low = int(alone.max(initial=0))
    high = max(low, int(loads.work.sum()), int(loads.cpu_work.sum()))
    nothing = Sums(*(np.zeros(1, dtype=np.int64) for _ in Sums._fields))
    while low < high:
        middle = (low + high) // 2
        bounds = windows(loads, num_accelerators, num_cpus, middle + 1)
        if int(bounds.needs(nothing, 0.0)[0, 0]) <= num_accelerators:
            high = middle
        else:
            low = middle + 1
    return low


def packing_bound(
    loads: BlockLoads, num_accelerators: int, num_cpus: int, lower: int, upper: int
) -> int:
    """The largest T from `lower` to `upper` of which packing shows that nothing below it fits."""
    low, high = lower, upper  # nothing is known of T = high; nothing lies below low
    while high - low > max(1, PRECISION * high):
        middle = (low + high) // 2
        if _packs(_heavy(loads, num_cpus, middle), num_accelerators, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _heavy(loads: BlockLoads, num_cpus: int, largest: int) -> list[int]:
    """The work of the blocks that packing looks at for T = `largest`, descending."""
    on_accelerator = (loads.cpu_work > largest) | (num_cpus == 0)
    work = loads.work[on_accelerator & (loads.work * SMALLEST_SHARE >= largest)]
    return sorted(work.tolist(), reverse=True)


def _packs(work: list[int], bins: int, size: int) -> bool:
    """Whether blocks, rounded down to a few values, fit into bins of a size."""
    if not work or work[0] > size:
        return not work
    values, amounts = _rounded_down(work)
    shape = tuple(amount + 1 for amount in amounts)
    patterns = _patterns(values, amounts, size)
    fits = np.zeros(shape, dtype=bool)
    fits[(0,) * len(shape)] = True
    state = np.indices(shape)
    sources = [
        tuple(np.maximum(axis - taken, 0) for axis, taken in zip(state, pattern, strict=True))
        for pattern in patterns
    ]
    for _ in range(min(bins, len(work))):
        more: Flags = np.logical_or.reduce([fits[source] for source in sources])
        if more[-1 if len(shape) == 1 else (-1,) * len(shape)] or (more == fits).all():
            fits = more
            break
        fits = more
    return bool(fits.flat[-1])


def _rounded_down(work: list[int]) -> tuple[list[int], list[int]]:
    """Values and how many blocks have each: neighbours are joined at the smaller value, those first
    that lose least, until there are few enough multisets."""
    groups = [[value, len(list(same))] for value, same in itertools.groupby(work)]
    while np.prod([float(amount + 1) for _, amount in groups]) > PATTERN_STATES:
        loss = [(upper[0] - below[0]) * upper[1] for upper, below in itertools.pairwise(groups)]
        at = loss.index(min(loss))
        groups[at : at + 2] = [[groups[at + 1][0], groups[at][1] + groups[at + 1][1]]]
    return [value for value, _ in groups], [amount for _, amount in groups]


def _patterns(values: Sequence[int], amounts: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Every multiset that fits into a bin to which none of its own blocks can be added."""
    if not values:
        return [()]
    found: list[tuple[int, ...]] = []
    most = min(amounts[0], size // values[0])
    for taken in range(most, -1, -1):
        for rest in _patterns(values[1:], amounts[1:], size - taken * values[0]):
            used = taken * values[0] + sum(v * a for v, a in zip(values[1:], rest, strict=True))
            if taken == most or used + values[0] > size:
                found.append((taken, *rest))
    return found


def cut_bound(loads: BlockLoads, num_cpus: int, lower: int) -> int:
    """`lower`, or a larger load that the device of some heavy block must have."""
    alone = loads.alone
    network = _Network(loads)
    for block in np.argsort(-alone, kind="stable")[:HEAVIEST].tolist():
        cpu = int(loads.cpu_work[block]) if num_cpus else 1 << 60
        if min(int(alone[block]), cpu) > lower and not loads.barred[block]:
            lower = max(lower, min(cpu, network.smallest_load(block)))
    return lower


class _Network:
    """Shortest augmenting paths in layers (Dinic) over the arcs that the head of the file names."""

    def __init__(self, loads: BlockLoads) -> None:
        size = len(loads.work)
        self.sink = size
        self.heads: list[int] = []
        self.room: list[int] = []
        self.arcs: list[list[int]] = [[] for _ in range(size + 1 + 2 * len(loads.costs))]
        for block, work in enumerate(loads.work.tolist()):
            if work:
                self._arc(block, self.sink, work)
        for number, (link, cost) in enumerate(
            zip(loads.blocks.links, loads.costs.tolist(), strict=True)
        ):
            first = size + 1 + 2 * number
            self._arc(first, first + 1, cost)
            for block in link.blocks:
                self._arc(block, first, 1 << 60)
                self._arc(first + 1, block, 1 << 60)
        self.full = list(self.room)

    def _arc(self, tail: int, head: int, room: int) -> None:
        self.arcs[tail].append(len(self.heads))
        self.arcs[head].append(len(self.heads) + 1)
        self.heads += [head, tail]
        self.room += [room, 0]

    def smallest_load(self, block: int) -> int:
        """The smallest load of an accelerator that holds `block`."""
        self.room = list(self.full)
        total = 0
        while (level := self._levels(block))[self.sink] >= 0:
            following = [0] * len(self.arcs)
            while pushed := self._augment(block, level, following):
                total += pushed
        return total

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self.arcs)
        level[source] = 0
        queue = [source]
        for tail in queue:
            for arc in self.arcs[tail]:
                head = self.heads[arc]
                if self.room[arc] and level[head] < 0:
                    level[head] = level[tail] + 1
                    queue.append(head)
        return level

    def _augment(self, source: int, level: list[int], following: list[int]) -> int:
        """Push along one path of the layers; what went through, 0 where there is none."""
        path: list[int] = []
        tail = source
        while tail != self.sink:
            arcs = self.arcs[tail]
            while following[tail] < len(arcs):
                arc = arcs[following[tail]]
                if self.room[arc] and level[self.heads[arc]] == level[tail] + 1:
                    break
                following[tail] += 1
            if following[tail] < len(arcs):
                path.append(arcs[following[tail]])
                tail = self.heads[path[-1]]
            elif path:
                tail = self.heads[path.pop() ^ 1]
                following[tail] += 1
            else:
                return 0
        pushed = min(self.room[arc] for arc in path)
        for arc in path:
            self.room[arc] -= pushed
            self.room[arc ^ 1] += pushed
        return pushed
