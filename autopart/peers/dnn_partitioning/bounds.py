"""Lower bounds on the largest charge on accelerators and CPUs, contiguous or not.

Symbols   T       a largest charge, in quanta
          w, q    a block's work on an accelerator, and on a CPU
          K, M    accelerators and CPUs

Counting. K accelerators must be enough for all work that M CPUs cannot take over (device_needs.py).
Each block must run somewhere: T >= w, or T >= q on a CPU.

Packing. Blocks that no CPU can run within T must fit into K bins with size T. Only those with at
least T / 8 are looked at. Their work is rounded down to a few values, so that a bin holds one of
few patterns. The multisets for j bins follow from those for j - 1 bins. If the blocks are not a
multiset for K bins, the largest charge is above T.

Cut. Let no CPU run block b within T. Then b is on an accelerator. Its charge is at least the
smallest one over all sets that contain b. Work plus split links is a cut function, so the smallest
one is a minimum cut from b. An arc with capacity w leads from each block to the sink. Each link has
two points, with an arc with its cost between them. Unlimited arcs lead from its blocks to the first
point, and from the second point to its blocks.

Each function takes block charges and gives quanta. So a bound can be checked again from the file
alone.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Flags
from autopart.peers.dnn_partitioning.device_needs import device_needs
from autopart.peers.dnn_partitioning.downset_table import BlockSums

SMALLEST_SHARE = 8
"""Packing looks at blocks with at least T divided by this."""

PATTERN_STATES = 6_000
"""Most multisets of blocks that packing tells apart."""

PRECISION = 1e-5
"""Relative precision at which packing stops; its result is a bound in any case."""

HEAVIEST = 24
"""Number of blocks whose cuts are computed, those with most work and link costs first."""


def counting_bound(charges: BlockCharges, num_accelerators: int, num_cpus: int) -> int:
    """The smallest T that counting allows."""
    cpu = charges.cpu_work if num_cpus else np.full_like(charges.cpu_work, 1 << 60)
    alone = np.where(charges.barred > 0, cpu, np.minimum(charges.work, cpu))
    low = int(alone.max(initial=0))
    high = max(low, int(charges.work.sum()), int(charges.cpu_work.sum()))
    nothing = BlockSums(*(np.zeros(1, dtype=np.int64) for _ in BlockSums._fields))
    # Bisection: the accelerators that counting asks for never grow with T.
    while low < high:
        middle = (low + high) // 2
        bounds = device_needs(charges, num_accelerators, num_cpus, middle + 1)
        if int(bounds.needs(nothing, 0.0)[0, 0]) <= num_accelerators:
            high = middle
        else:
            low = middle + 1
    return low


def packing_bound(
    charges: BlockCharges, num_accelerators: int, num_cpus: int, lower: int, upper: int
) -> int:
    """The largest T from `lower` to `upper` with a proof by packing that nothing below it fits."""
    low, high = lower, upper
    # Nothing lies below `low`; nothing is known about T = `high`.
    while high - low > max(1, PRECISION * high):
        middle = (low + high) // 2
        if _packs(_heavy(charges, num_cpus, middle), num_accelerators, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _heavy(charges: BlockCharges, num_cpus: int, largest: int) -> list[int]:
    """Work for the blocks that packing looks at for T = `largest`, descending."""
    on_accelerator = (charges.cpu_work > largest) | (num_cpus == 0)
    work = charges.work[on_accelerator & (charges.work * SMALLEST_SHARE >= largest)]
    return sorted(work.tolist(), reverse=True)


def _packs(work: list[int], bins: int, size: int) -> bool:
    """Whether blocks, rounded down to a few values, fit into bins with a size."""
    if not work or work[0] > size:
        return not work
    values, amounts = _rounded_down(work)
    shape = tuple(amount + 1 for amount in amounts)
    patterns = _patterns(values, amounts, size)
    fits = np.zeros(shape, dtype=bool)
    fits[(0,) * len(shape)] = True
    state = np.indices(shape)
    # Step 1: for each multiset and pattern, the multiset that is left when one bin takes the
    # pattern.
    sources = [
        tuple(np.maximum(axis - taken, 0) for axis, taken in zip(state, pattern, strict=True))
        for pattern in patterns
    ]
    # Step 2: one more bin in each round, until all blocks fit or nothing changes.
    for _ in range(min(bins, len(work))):
        more: Flags = np.logical_or.reduce([fits[source] for source in sources])
        if more[-1 if len(shape) == 1 else (-1,) * len(shape)] or (more == fits).all():
            fits = more
            break
        fits = more
    return bool(fits.flat[-1])


def _rounded_down(work: list[int]) -> tuple[list[int], list[int]]:
    """Values, and the number of blocks for each.

    Neighbours are joined at the smaller value, cheapest first, until there are few enough
    multisets.
    """
    groups = [[value, len(list(same))] for value, same in itertools.groupby(work)]
    while np.prod([float(amount + 1) for _, amount in groups]) > PATTERN_STATES:
        loss = [(upper[0] - below[0]) * upper[1] for upper, below in itertools.pairwise(groups)]
        at = loss.index(min(loss))
        groups[at : at + 2] = [[groups[at + 1][0], groups[at][1] + groups[at + 1][1]]]
    return [value for value, _ in groups], [amount for _, amount in groups]


def _patterns(values: Sequence[int], amounts: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Every multiset that fits into a bin and leaves no room for another block in it."""
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


def cut_bound(charges: BlockCharges, num_cpus: int, lower: int) -> int:
    """`lower`, or a larger charge that some heavy block's device must have."""
    alone = charges.alone
    network = _FlowNetwork(charges)
    for block in np.argsort(-alone, kind="stable")[:HEAVIEST].tolist():
        cpu = int(charges.cpu_work[block]) if num_cpus else 1 << 60
        if min(int(alone[block]), cpu) > lower and not charges.barred[block]:
            lower = max(lower, min(cpu, network.smallest_charge(block)))
    return lower


class _FlowNetwork:
    """Shortest augmenting paths in layers (Dinic) over the arcs that the module's docstring names."""

    def __init__(self, charges: BlockCharges) -> None:
        size = len(charges.work)
        self.sink = size
        self.heads: list[int] = []
        self.room: list[int] = []
        self.arcs: list[list[int]] = [[] for _ in range(size + 1 + 2 * len(charges.costs))]
        for block, work in enumerate(charges.work.tolist()):
            if work:
                self._arc(block, self.sink, work)
        for number, (link, cost) in enumerate(
            zip(charges.blocks.links, charges.costs.tolist(), strict=True)
        ):
            first = size + 1 + 2 * number
            self._arc(first, first + 1, cost)
            for block in link.blocks:
                self._arc(block, first, 1 << 60)
                self._arc(first + 1, block, 1 << 60)
        self.full = list(self.room)

    def _arc(self, tail: int, head: int, room: int) -> None:
        """Add an arc and its reverse."""
        self.arcs[tail].append(len(self.heads))
        self.arcs[head].append(len(self.heads) + 1)
        self.heads += [head, tail]
        self.room += [room, 0]

    def smallest_charge(self, block: int) -> int:
        """The smallest charge on an accelerator that holds `block`."""
        self.room = list(self.full)
        total = 0
        # One phase: layers by distance from the block, then paths along them until none is left.
        while (level := self._levels(block))[self.sink] >= 0:
            following = [0] * len(self.arcs)
            while pushed := self._augment(block, level, following):
                total += pushed
        return total

    def _levels(self, source: int) -> list[int]:
        """The distance from `source` for each point; -1 where it cannot be reached."""
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
        """Push along one path through the layers; returns the flow, 0 where there is no path."""
        path: list[int] = []
        tail = source
        # Step 1: depth first to the sink; arcs that lead nowhere are passed for good.
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
        # Step 2: push as much as the narrowest arc takes.
        pushed = min(self.room[arc] for arc in path)
        for arc in path:
            self.room[arc] -= pushed
            self.room[arc ^ 1] += pushed
        return pushed


def best_bound(charges: BlockCharges, accelerators: int, cpus: int, upper: int) -> tuple[int, str]:
    """The largest of the three bounds in quanta, and its basis in words."""
    counted = counting_bound(charges, accelerators, cpus)
    packed = packing_bound(charges, accelerators, cpus, counted, upper)
    cut = cut_bound(charges, cpus, packed)
    if cut > packed:
        return cut, "cut: the lightest accelerator that can hold some heavy node"
    if packed > counted:
        return packed, "packing: the heavy nodes, rounded down, into the devices"
    return counted, "counting: all work, shared out evenly over the devices, and the heaviest node"
