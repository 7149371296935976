"""The layouts of one problem in the order of their lower bounds, where only the first few are worth a visit.

A visit prices partitions, which takes seconds where a step has many microbatches. A layout's own bound takes a tenth
of it, and is often much larger than the quick bound of its shape: it knows which stages fit into memory. So the shapes get
the bounds of their layouts first, one by one. The layout with the least bound is visited when no shape is left below it.
"""

import heapq
import itertools

from autopart.bounds.glance import shapes_without_gpipe
from autopart.cost.cuts import list_all
from autopart.records.layouts import layouts
from autopart.search import every_assignment
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.open_layout import OpenLayout
from autopart.stopping.time_limit import OutOfTime, check_time, limited


class LayoutsInOrder:
    """Layouts of a search that wait for a visit, and shapes that wait for bounds of their layouts."""

    def __init__(self, search: BranchAndBound) -> None:
        self.search = search
        self._waiting: list[tuple[float, int, OpenLayout]] = []
        self._order = itertools.count()
        shapes = [shape for _, shape in search.shapes]
        self._without_gpipe = shapes_without_gpipe(search.problem, shapes)

    @property
    def least(self) -> float:
        """Seconds that no layout beats of those that wait; infinite where none waits."""
        return min(self.search.unvisited, self.least_layout)

    @property
    def least_layout(self) -> float:
        """The least bound of the layouts that wait for a visit."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def bound_shape(self, until: float) -> None:
        """Bound the layouts of the next shape. Out of time, the shape still waits."""
        search = self.search
        bound, shape = search.shapes[search.num_visited]
        places: list[OpenLayout] = []
        with limited(until):
            try:
                for layout in layouts(search.problem, *shape):
                    check_time()
                    if layout.schedule == "gpipe" and shape in self._without_gpipe:
                        continue
                    listed = list_all(search.found.cuts, len(layout.stage_ranks))
                    least = (
                        every_assignment.least_of_root(search.found, layout) if listed else bound
                    )
                    if least is not None:
                        places.append(OpenLayout(max(least, bound), layout))
            except OutOfTime:
                return
        for place in places:
            heapq.heappush(self._waiting, (place.bound, next(self._order), place))
        search.open += places
        search.num_visited += 1
        at = search.num_visited
        search.unvisited = search.shapes[at][0] if at < len(search.shapes) else float("inf")

    def visit_layout(self, until: float) -> None:
        """Try the proposals for the layout with the least bound. Out of time, it stays open."""
        search = self.search
        _, _, place = heapq.heappop(self._waiting)
        search.found.deadline = until
        with limited(until):
            try:
                visited = every_assignment.visit(search.found, place.layout, place.bound)
            except OutOfTime:
                return
        search.open.remove(place)
        search.open += [] if visited is None else [visited]
