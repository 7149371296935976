"""The lists of replicas that bounds leave open below a value, and the search that closes them."""

import itertools

from autopart.bounds.objectives import TOLERANCE
from autopart.bounds.open_replicas import Counts, open_counts
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.records.layouts import layouts_of
from autopart.search import every_assignment
from autopart.search.closing import Closed
from autopart.search.layout_search import LayoutSearch


class OpenLists:
    """All lists of replicas for a problem, as a search closes them."""

    def __init__(self, found: LayoutSearch, bounds: ReplicaBounds, quick_bound: float) -> None:
        self.found, self.bounds, self.quick_bound = found, bounds, quick_bound
        self._latest: tuple[float, list[Counts] | None] = 0.0, []

    def lists(self, value: float) -> list[Counts] | None:
        """The replicas that bounds leave open below `value` seconds; None where they are too many.

        A check lists none where the bound of any cuts reaches the value, by a rounding too.
        """
        if value <= self.quick_bound * (1 + TOLERANCE):
            return []
        if self._latest[0] != value:
            self._latest = value, open_counts(self.bounds, value)
        return self._latest[1]

    def count_below(self, value: float) -> int:
        """Partitions that a check must simulate to prove a value."""
        return sum(
            every_assignment.count_below(self.found, layout, value)
            for own in self.lists(value) or []
            for layout in layouts_of(self.found.problem, own)
        )

    def close(self, value: float, actions: int) -> Closed | None:
        """Simulate every partition that may take less than `value` seconds.

        None where they are too many.
        """
        counts = self.lists(value)
        if counts is None:
            return None
        partitions = spent = 0
        layouts = (layouts_of(self.found.problem, own) for own in counts)
        for layout in itertools.chain(*layouts):
            closed = every_assignment.close(self.found, layout, value, actions - spent)
            if closed is None:
                return None
            partitions += closed.simulated
            spent += closed.actions
        return Closed(partitions, spent)
