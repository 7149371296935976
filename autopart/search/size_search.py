"""The search of a sizing, over all GPU kinds and numbers of GPUs.

A number of GPUs is searched only for plans that can be on the front. They meet the date and the budget. And
against each plan found with no more GPUs they have fewer days or less cost. All this asks for fewer seconds than
some value. A lower bound that reaches the value excludes the number, proven; a search stops there.

Step 1: for each kind the fewest GPUs that meet the date. The best step never grows with whole nodes
(autopart/search/count_search.py), so bisection finds them, and one bound excludes all smaller numbers.
Step 2: all numbers to try, the fewest first.
Step 3: for numbers that the date excludes, whether any plan fits.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from autopart.search.count_search import KindSearch
from autopart.search.size_front import TOLERANCE, Found, TrainingLimits
from autopart.search.size_options import GpuCount
from autopart.stopping.time_limit import passed, time_left

SECONDS_TO_EXPLAIN = 2.0
"""Seconds for one number of GPUs to tell a lack of memory from a late date."""
LEAST_SECONDS = 1.0
"""Seconds for one number of GPUs, as long as the time limit allows."""

Listener = Callable[[int, int, str], None]
"""Takes the numbers of GPUs that are done, all that are known, and the next one in words."""


class TimeLimits(NamedTuple):
    """How long the search may take."""

    deadline: float
    """A reading of `time.perf_counter()`."""
    each: float
    """Seconds for one number of GPUs at most."""


class SizeSearch:
    """The search over all kinds and all numbers of GPUs."""

    def __init__(
        self,
        searches: Sequence[KindSearch],
        tried: Mapping[str, Sequence[GpuCount]],
        limits: TrainingLimits,
        times: TimeLimits,
        *,
        refines: bool,
        listener: Listener | None,
    ) -> None:
        """`tried` has the numbers of GPUs by kind; with `refines` the search may add whole nodes between them."""
        self.searches, self.limits = searches, limits
        self.tried = {name: list(counts) for name, counts in tried.items()}
        self.times, self.refines, self.listener = times, refines, listener
        self._num_searched = 0

    def run(self) -> None:
        """Search within the limits, until the deadline."""
        for search in self.searches:
            self._find_fewest(search)
        self.search_all(self.limits)
        if self.limits.within < math.inf:
            for search in self.searches:
                self._tell_memory_from_date(search)

    def search_all(self, limits: TrainingLimits) -> None:
        """Search every number of GPUs for plans that can be on the front, the fewest first."""
        queue = [
            (count, place)
            for place, search in enumerate(self.searches)
            for count in self.tried[search.kind.name]
        ]
        queue.sort()
        for at in itertools.count():
            if at >= len(queue):
                break
            count, place = queue[at]
            search = self.searches[place]
            self._try(search, count, self.needed(search, count, limits))
            smaller = self._without_idle_nodes(search, count)
            if smaller is not None:
                bisect.insort(queue, (smaller, place), lo=at + 1)

    def find_nearest(self) -> None:
        """Find plans that miss the limits by little, where none meets them.

        These are the cheapest that meet the date; where none meets it, the fastest. Raises the error of the question
        where it cannot be asked of any number of GPUs.
        """
        states = [state for search in self.searches for state in search.states.values()]
        errors = [state.error for state in states if state.error is not None]
        if states and len(errors) == len(states):
            raise errors[0]
        if self.limits.budget < math.inf:
            self.search_all(self.limits._replace(budget=math.inf))
        if all(own.step >= self.limits.longest_step for own in self.found()):
            for search in self.searches:
                for count in self.tried[search.kind.name][-1:]:
                    left = max(LEAST_SECONDS, time_left(self.times.deadline))
                    search.search(count, math.inf, min(self.times.each, left))

    def needed(self, search: KindSearch, count: GpuCount, limits: TrainingLimits) -> float:
        """A plan can be on the front where it takes less than so many seconds from step to step."""
        return min(
            limits.longest_step,
            limits.dearest_step(search.kind, count),
            limits.undominated_step(search.kind, count, self.found())[0],
        )

    def found(self) -> list[Found]:
        """All plans found, whether they meet the limits or not."""
        return [
            Found(
                search.kind,
                count,
                state.found,
                self.limits.cost(search.kind, count, state.found.step),
            )
            for search in self.searches
            for count, state in search.states.items()
            if state.found is not None
        ]

    def _find_fewest(self, search: KindSearch) -> None:
        """Find the fewest GPUs that meet the date."""
        limit, counts = self.limits.longest_step, self.tried[search.kind.name]
        each = search.kind.node.gpus_per_node
        # Step 1: parts of a node, one by one.
        if any(self._try(search, count, limit) for count in counts if count.gpus < each):
            return
        # Step 2: the numbers to try, by bisection.
        whole = [count for count in counts if count.gpus >= each]
        below, first = self._bisected(search, whole, limit)
        if first is None or not self.refines:
            return
        # Step 3: the whole nodes between the last that misses the date and the first that meets it.
        least = below.nodes + 1 if below is not None else 1
        between = [GpuCount(n * each, n) for n in range(least, first.nodes)]
        self._bisected(search, between, limit)

    def _bisected(
        self, search: KindSearch, counts: Sequence[GpuCount], limit: float
    ) -> tuple[GpuCount | None, GpuCount | None]:
        """The last number without a plan below `limit` seconds, and the first with one, as far as bisection tells."""
        low, high = -1, len(counts)
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(search, counts[middle], limit):
                high = middle
            else:
                low = middle
        return (
            counts[low] if low >= 0 else None,
            counts[high] if high < len(counts) else None,
        )

    def _try(self, search: KindSearch, count: GpuCount, limit: float) -> bool:
        """Whether a plan below `limit` seconds is known, after a search where bounds do not exclude one."""
        self._remember(search, count)
        state = search.state(count)
        if state.has_below(limit):
            return True
        if search.bound(count)[0] >= limit or state.error or passed(self.times.deadline):
            return False
        if self.listener is not None:
            known = sum(map(len, self.tried.values()))
            self.listener(self._num_searched, known, f"{count.gpus} {search.kind.name}")
        self._num_searched += 1
        search.search(count, limit, self._seconds())
        return state.has_below(limit)

    def _remember(self, search: KindSearch, count: GpuCount) -> None:
        counts = self.tried[search.kind.name]
        if count not in counts:
            bisect.insort(counts, count)

    def _seconds(self) -> float:
        """Seconds for the next number of GPUs: an even share of the time that is left."""
        left = time_left(self.times.deadline)
        waiting = max(1, sum(map(len, self.tried.values())) - self._num_searched)
        return min(self.times.each, left, max(LEAST_SECONDS, left / waiting))

    def _without_idle_nodes(self, search: KindSearch, count: GpuCount) -> GpuCount | None:
        """Fewer GPUs, new to the search, for a plan that leaves whole nodes idle; None where it leaves none."""
        found = search.state(count).found
        if found is None or not self.refines or found.nodes_in_use >= count.nodes:
            return None
        nodes = found.nodes_in_use
        smaller = GpuCount(nodes * search.kind.node.gpus_per_node, nodes)
        if smaller in search.states:
            return None
        self._try(search, smaller, found.step * (1 + TOLERANCE))
        return smaller

    def _tell_memory_from_date(self, search: KindSearch) -> None:
        """Of the numbers that the date excludes, find those on which no plan fits."""
        limit, each = self.limits.longest_step, search.kind.node.gpus_per_node
        late = [
            count
            for count in self.tried[search.kind.name]
            if limit <= search.bound(count)[0] < math.inf and search.state(count).found is None
        ]

        def lacks_memory(count: GpuCount) -> bool:
            left = min(SECONDS_TO_EXPLAIN, time_left(self.times.deadline))
            return left > 0 and search.lacks_memory(count, left)

        parts = [count for count in late if count.gpus < each]
        if not all(lacks_memory(count) for count in parts):
            return
        whole = [count for count in late if count.gpus >= each]
        low, high = -1, len(whole)
        while high - low > 1:
            middle = (low + high) // 2
            if lacks_memory(whole[middle]):
                low = middle
            else:
                high = middle
