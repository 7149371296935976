"""A stage's bytes under GPipe and 1F1B, by the number of microbatches in flight: for solvers on chains."""

from typing import Any, Generic, NamedTuple

from autopart.cost.memory import memory, moving_bytes, total
from autopart.cost.stage_totals import StageTotals
from autopart.records.peak_bytes import at_peak
from autopart.records.problem import Problem
from autopart.schedules.actions import microbatches_per_replica
from autopart.schedules.classic_rows import all_at_once, classic_rows
from autopart.schedules.in_flight import MAX_SENDS, InFlight
from autopart.units import Q


class ByNumber(NamedTuple, Generic[Q]):
    """A stage's bytes under GPipe or 1F1B, by the number of microbatches in flight.

    They are `fixed`, the stash of those in flight, and one of the others.
    """

    fixed: Q
    """Without any in flight."""
    beside: list[Q]
    """With 0, 1, … microbatches in flight. The last one holds for more."""
    all_at_once: Q
    """Where all microbatches of the rank are in flight before its first backward."""


def bytes_by_number(
    totals: StageTotals[Q], problem: Problem, replicas: int, most: int
) -> ByNumber[Q]:
    """The bytes of a stage with so many replicas and up to `most` microbatches in flight."""
    own = microbatches_per_replica(problem.num_microbatches, replicas)
    sizes = moving_bytes(totals, problem, replicas, own)
    fixed: Any = total(memory(totals, problem, replicas, 0)) - sum(
        at_peak(classic_rows(0), [sizes])
    )

    def beside(rows: InFlight, number: int) -> Any:
        peak: Any = sum(at_peak(rows, [sizes]))
        return peak - number * totals.stash_bytes

    numbers = range(min(most, MAX_SENDS + 1) + 1)
    return ByNumber(
        fixed,
        [beside(classic_rows(y), y) for y in numbers],
        beside(all_at_once(own), own),
    )
