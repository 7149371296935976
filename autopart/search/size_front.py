"""The front of a sizing: plans that meet the limits, of which none is at least as good as another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autopart.search.count_search import FoundDecision
from autopart.search.size_options import GpuCount, PricedKind

TOLERANCE = 1e-9
"""Relative difference up to which days and costs are equal, and a limit is met."""
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Found:
    """A plan on a number of GPUs of a kind."""

    kind: PricedKind
    count: GpuCount
    found: FoundDecision
    cost: float
    """Dollars for the whole training."""

    @property
    def step(self) -> float:
        """Seconds from step to step."""
        return self.found.step


class TrainingLimits(NamedTuple):
    """The steps of a training, and what it may take."""

    num_steps: int
    within: float
    """Seconds for the whole training; infinite without a date."""
    budget: float
    """Dollars; infinite without a budget."""

    @property
    def longest_step(self) -> float:
        """A plan meets the date where it takes less than so many seconds from step to step."""
        return self.within / self.num_steps * (1 + TOLERANCE)

    def cost(self, kind: PricedKind, count: GpuCount, step: float) -> float:
        """Dollars for the whole training."""
        return self.num_steps * step / SECONDS_PER_HOUR * kind.price * count.gpus

    def dearest_step(self, kind: PricedKind, count: GpuCount) -> float:
        """A plan keeps to the budget where it takes less than so many seconds from step to step."""
        return self.budget / self.cost(kind, count, 1.0) * (1 + TOLERANCE)

    def undominated_step(
        self, kind: PricedKind, count: GpuCount, found: Sequence[Found]
    ) -> tuple[float, Found | None]:
        """A plan has fewer days or less cost than each one found with no more GPUs where it takes less than so long.

        Also the plan found that asks for the shortest step; None where no number of GPUs is as small.
        """
        each = self.cost(kind, count, 1.0)
        asked = [
            (max(other.step, other.cost / each), place)
            for place, other in enumerate(found)
            if other.count.gpus <= count.gpus
            and (other.kind.name, other.count) != (kind.name, count)
        ]
        if not asked:
            return math.inf, None
        step, place = min(asked)
        return step * (1 - TOLERANCE), found[place]


def front_of(found: Sequence[Found]) -> list[Found]:
    """The plans that no other one dominates, the fewest GPUs first; of equal ones the first."""
    kept: list[Found] = []
    for own in sorted(found, key=lambda own: (own.count.gpus, own.step, own.cost)):
        if not any(dominates(other, own) for other in kept):
            kept.append(own)
    return kept


def dominates(other: Found, own: Found) -> bool:
    """Whether a plan has no more GPUs, days and cost than another one."""
    more = 1 + TOLERANCE
    return (
        other.count.gpus <= own.count.gpus
        and other.step <= own.step * more
        and other.cost <= own.cost * more
    )
