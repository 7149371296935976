"""The least number of devices for a set of blocks, when every charge lies below a threshold.

Symbols   tau        the threshold;  t = tau - 1  the largest charge below it, in quanta
          K, M       accelerators and CPUs
          A(b)       the most accelerator work in blocks with at most b CPU work in all: the fractional
                     knapsack over blocks that a CPU can run below tau
          L          bytes per accelerator;  G(b)  as A(b), for sizes

Let accelerators hold a set X of blocks, with help from m CPUs. Their charges add up to at least
work(X) - A(m t). Without help they also pay all links between X and the rest, since some
accelerator on this side pays each of them. So X needs at least

    ceil( (work(X) - A(m t) [+ split(X) if m = 0]) / t )    and    ceil( (size(X) - G(m t)) / L )

accelerators. A downset D that ends a stage must leave room for both sides within K.
"""

from typing import NamedTuple

import numpy as np

from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Flags, Ints
from autopart.peers.dnn_partitioning.downset_table import BlockSums, Floats

NEVER = 1 << 30
"""More devices than there are."""


class DeviceNeeds(NamedTuple):
    """The bounds for one threshold."""

    tau: int
    num_accelerators: int
    num_cpus: int
    relief: tuple[int, ...]
    """A(m t), by m."""
    size_relief: tuple[int, ...]
    """G(m t), by m."""
    size_limit: int
    """Size units per accelerator."""
    total: BlockSums
    """Sums over all blocks."""

    def spent(self, sums: BlockSums, split: Floats | float) -> Ints:
        """Accelerators that each downset needs with m CPUs, at [m, row]."""
        return np.array([self._need(sums, split, m) for m in range(self.num_cpus + 1)])

    def needs(self, sums: BlockSums, split: Floats | float) -> Ints:
        """Accelerators that the rest needs when m CPUs are taken, at [m, row]."""
        rest = BlockSums(*(total - part for total, part in zip(self.total, sums, strict=True)))
        return np.array(
            [self._need(rest, split, self.num_cpus - m) for m in range(self.num_cpus + 1)]
        )

    def inside(self, sums: BlockSums, split: Floats | float) -> Flags:
        """Flags: the downsets that may end a stage."""
        both = self.spent(sums, split) + self.needs(sums, split)
        return np.any(both <= self.num_accelerators, axis=0)

    def _need(self, sums: BlockSums, split: Floats | float, helpers: int) -> Ints:
        """Accelerators for sets of blocks with `helpers` CPUs."""
        work = sums.work - self.relief[helpers]
        if not helpers:
            work = work + np.asarray(split).astype(np.int64)
        by_work = _divided_up(work, self.tau - 1)
        by_size = _divided_up(sums.sizes - self.size_relief[helpers], self.size_limit)
        at_least = np.where((sums.blocks > 0) & (helpers == 0), 1, 0)
        return np.maximum(np.maximum(by_work, by_size), at_least)


def device_needs(
    charges: BlockCharges, num_accelerators: int, num_cpus: int, tau: int
) -> DeviceNeeds:
    """The bounds for `tau` quanta."""
    able = charges.cpu_work < tau
    cpu = charges.cpu_work[able]
    budgets = [m * (tau - 1) for m in range(num_cpus + 1)]
    everything = (
        charges.work,
        charges.cpu_work,
        charges.sizes,
        charges.barred,
        np.ones_like(charges.work),
    )
    return DeviceNeeds(
        tau=tau,
        num_accelerators=num_accelerators,
        num_cpus=num_cpus,
        relief=tuple(_knapsack(charges.work[able], cpu, budget) for budget in budgets),
        size_relief=tuple(_knapsack(charges.sizes[able], cpu, budget) for budget in budgets),
        size_limit=charges.size_limit,
        total=BlockSums(*(column.sum(keepdims=True) for column in everything)),
    )


def _knapsack(values: Ints, weights: Ints, budget: int) -> int:
    """The largest value within a weight `budget`, with the last item taken in part; rounded up."""
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-(values / weights), kind="stable")
    total = 0
    # Items in descending order of value per weight.
    for value, weight in zip(values[order].tolist(), weights[order].tolist(), strict=True):
        if weight > budget:
            return total + value * budget // weight + 1
        total, budget = total + value, budget - weight
    return total


def _divided_up(amounts: Ints, share: int) -> Ints:
    """The number of shares that hold each amount."""
    if share <= 0:
        return np.where(amounts > 0, NEVER, 0)
    return np.maximum(-(-amounts // share), 0)
