"""How many devices a set of blocks needs at least, when every load lies below a threshold.

Symbols   tau        the threshold;  t = tau - 1  the largest load below it, in quanta
          K, M       accelerators and CPUs
          A(b)       the most accelerator work that blocks can have whose CPU work adds up to at most b:
                     the fractional knapsack over blocks that a CPU can run below tau
          L          the size that an accelerator holds;  G(b)  as A(b), for sizes

All loads on the accelerators that hold a set X of blocks, with the help of m CPUs, add up to at least
work(X) - A(m t); without help also to the costs of all links between X and the rest, since some
accelerator on this side pays each of them. So X needs at least

    ceil( (work(X) - A(m t) [+ split(X) if m = 0]) / t )    and    ceil( (size(X) - G(m t)) / L )

accelerators. A downset D that ends a stage must leave room for both sides within K.
"""

from typing import NamedTuple

import numpy as np

from autopart.loads.blocks import BlockLoads, Flags, Ints
from autopart.loads.downsets import Floats, Sums

NEVER = 1 << 30
"""More devices than there are."""


class Windows(NamedTuple):
    """The bounds for one threshold."""

    tau: int
    num_accelerators: int
    num_cpus: int
    relief: tuple[int, ...]
    """A(m t), by m."""
    size_relief: tuple[int, ...]
    """G(m t), by m."""
    size_limit: int
    total: Sums

    def spent(self, sums: Sums, split: Floats | float) -> Ints:
        """Accelerators that each downset needs with m CPUs, at [m, row]."""
        return np.array([self._need(sums, split, m) for m in range(self.num_cpus + 1)])

    def needs(self, sums: Sums, split: Floats | float) -> Ints:
        """Accelerators that the rest needs when m CPUs are taken, at [m, row]."""
        rest = Sums(*(total - part for total, part in zip(self.total, sums, strict=True)))
        return np.array(
            [self._need(rest, split, self.num_cpus - m) for m in range(self.num_cpus + 1)]
        )

    def inside(self, sums: Sums, split: Floats | float) -> Flags:
        """The downsets that may end a stage."""
        both = self.spent(sums, split) + self.needs(sums, split)
        return np.any(both <= self.num_accelerators, axis=0)

    def _need(self, sums: Sums, split: Floats | float, helpers: int) -> Ints:
        work = sums.work - self.relief[helpers]
        if not helpers:
            work = work + np.asarray(split).astype(np.int64)
        by_work = _divided_up(work, self.tau - 1)
        by_size = _divided_up(sums.sizes - self.size_relief[helpers], self.size_limit)
        at_least = np.where((sums.blocks > 0) & (helpers == 0), 1, 0)
        return np.maximum(np.maximum(by_work, by_size), at_least)


def windows(loads: BlockLoads, num_accelerators: int, num_cpus: int, tau: int) -> Windows:
    """The bounds for `tau` quanta."""
    able = loads.cpu_work < tau
    cpu = loads.cpu_work[able]
    budgets = [m * (tau - 1) for m in range(num_cpus + 1)]
    everything = (loads.work, loads.cpu_work, loads.sizes, loads.barred, np.ones_like(loads.work))
    return Windows(
        tau=tau,
        num_accelerators=num_accelerators,
        num_cpus=num_cpus,
        relief=tuple(_knapsack(loads.work[able], cpu, budget) for budget in budgets),
        size_relief=tuple(_knapsack(loads.sizes[able], cpu, budget) for budget in budgets),
        size_limit=loads.size_limit,
        total=Sums(*(column.sum(keepdims=True) for column in everything)),
    )


def _knapsack(values: Ints, weights: Ints, budget: int) -> int:
    """The largest value of items, the last of them in part, with at most `budget` weight; rounded up."""
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-(values / weights), kind="stable")
    total = 0
    for value, weight in zip(values[order].tolist(), weights[order].tolist(), strict=True):
        if weight > budget:
            return total + value * budget // weight + 1
        total, budget = total + value, budget - weight
    return total


def _divided_up(amounts: Ints, share: int) -> Ints:
    """The shares that hold each amount."""
    if share <= 0:
        return np.where(amounts > 0, NEVER, 0)
    return np.maximum(-(-amounts // share), 0)
