"""The plans that bounds leave open: replicas, degrees and cuts, those with the smallest bound first.

A plan begins with its replicas, schedule and number of stages, and grows stage by stage. A beginning has two
bounds (autopart/stage_degrees/completions.py), and the larger one counts:

- the largest b of its stages, and V of the rest;
- the path of one microbatch through its stages and, at best, through the rest, plus their largest e.

Beginnings are followed in the order of their bounds. The next one bounds all that were not followed yet.
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cost.cuts import keeps_pins, partition_of
from autopart.errors import PlanError
from autopart.records.layouts import Partition
from autopart.stage_degrees.bounds import DegreeBounds, Row
from autopart.stage_degrees.completions import AllCompletions, Completions
from autopart.stage_degrees.pricing import check_ties
from autopart.stopping.time_limit import check_time

Shape = tuple[Completions, int]
"""The completions for a schedule and a number of replicas, and a number of stages."""


Unopened = tuple[str, int]
"""A schedule and a number of replicas."""


class OpenPlan(NamedTuple):
    """A plan without its place on GPUs, and the bound on its step."""

    bound: float
    schedule: str
    replicas: int
    degrees: tuple[int, ...]
    path: tuple[int, ...]
    """The cuts between its stages, the first and the last cut among them."""


class _Beginning(NamedTuple):
    """The first stages of a plan."""

    rest: Completions
    behind: int
    """Stages behind them."""
    room: int
    """GPUs of each replica for these."""
    degrees: tuple[int, ...]
    path: tuple[int, ...]
    trip: float = 0.0
    """Seconds of one microbatch on these stages, and over the cuts between and behind them."""
    beside: float = 0.0
    """The largest e of these stages."""


class _Children(NamedTuple):
    """A beginning with one more stage each, smallest bounds first."""

    of: _Beginning
    bounds: Row
    degrees: Row
    cuts: Row
    trips: Row
    besides: Row


class OpenPlans:
    """All plans of a problem in the order of their bounds, each once.

    Its plans have at least two degrees, keep pins, and have one degree for all copies of a tied parameter.
    A schedule with a number of replicas waits with its eased bound, until this is the smallest.
    """

    def __init__(self, every: AllCompletions, shape: Shape | None = None) -> None:
        """`shape` leaves one schedule, number of replicas and number of stages of all."""
        self.every, self.bounds = every, every.bounds
        self._ids = itertools.count()
        self._waiting: list[tuple[float, int, int, _Children | Unopened, int]] = []
        self._left_out = math.inf
        """The smallest bound of the beginnings that did not lie below the value asked for."""
        if shape is not None:
            self._follow_shape(shape, 0.0, math.inf)
            return
        for least, schedule, replicas in every.eased:
            entry = (least, 0, next(self._ids), (schedule, replicas), 0)
            heapq.heappush(self._waiting, entry)

    @property
    def bound(self) -> float:
        """Seconds that no plan beats which was not returned yet; infinite where there is none."""
        waiting = self._waiting[0][0] if self._waiting else math.inf
        return min(waiting, self._left_out)

    def next_below(self, seconds: float) -> OpenPlan | None:
        """The next plan with a bound below `seconds`; None where there is none.

        `seconds` may only become smaller from call to call.
        """
        while self._waiting and self._waiting[0][0] < seconds:
            check_time()
            bound, _, _, first, at = self._waiting[0]
            if not isinstance(first, _Children):
                # Where this runs out of time, it waits on.
                rest = self.every.of(*first)
                heapq.heappop(self._waiting)
                for stages in rest.counts:
                    self._follow_shape((rest, stages), bound, seconds)
                continue
            heapq.heappop(self._waiting)
            if at + 1 < len(first.bounds):
                self._push(first, at + 1)
            one = _grown(first, at)
            if one.behind:
                self._follow(one, bound, seconds)
            elif is_allowed(self.bounds, one.degrees, one.path):
                return OpenPlan(bound, one.rest.schedule, one.rest.replicas, one.degrees, one.path)
        return None

    def _follow_shape(self, shape: Shape, bound: float, seconds: float) -> None:
        rest, stages = shape
        self._follow(_Beginning(rest, stages, rest.room, (), (0,)), bound, seconds)

    def _push(self, children: _Children, at: int) -> None:
        # Of equal bounds, the longest beginning comes first.
        entry = (float(children.bounds[at]), children.of.behind, next(self._ids), children, at)
        heapq.heappush(self._waiting, entry)

    def _follow(self, one: _Beginning, bound: float, seconds: float) -> None:
        """Wait with all beginnings that have one stage more and a bound below `seconds`."""
        rest, behind, start = one.rest, one.behind - 1, one.path[-1]
        found: list[np.ndarray] = []
        for degree in self.bounds.problem.degrees:
            if degree > one.room:
                continue
            own = self.bounds.stage(rest.schedule, rest.replicas, degree, behind)
            here, sends = own.bound[start], self.bounds.sends
            trip, beside = one.trip + own.trip[start], np.maximum(one.beside, own.beside[start])
            if behind:
                here = np.maximum(here, rest.values[behind - 1][one.room - degree])
                trip = trip + sends
                whole = trip + rest.trips[behind - 1][one.room - degree]
            else:
                here = np.where(np.arange(len(here)) == len(here) - 1, here, np.inf)
                whole = trip
            values = np.maximum(np.maximum(here, bound), whole + beside)
            cuts = np.arange(len(values))
            found.append(np.array([values, np.full(len(values), degree), cuts, trip, beside]))
        if not found:
            return
        values, degrees, cuts, trips, besides = np.concatenate(found, axis=1)
        order = np.argsort(values, kind="stable")
        many = int(np.searchsorted(values[order], seconds))
        if many < len(order):
            self._left_out = min(self._left_out, float(values[order[many]]))
        if many:
            kept = (each[order[:many]] for each in (values, degrees, cuts, trips, besides))
            self._push(_Children(one, *kept), 0)


def _grown(children: _Children, at: int) -> _Beginning:
    one, degree, cut = children.of, int(children.degrees[at]), int(children.cuts[at])
    return _Beginning(
        one.rest,
        one.behind - 1,
        one.room - degree,
        (*one.degrees, degree),
        (*one.path, cut),
        float(children.trips[at]),
        float(children.besides[at]),
    )


def is_allowed(bounds: DegreeBounds, degrees: Sequence[int], path: Sequence[int]) -> bool:
    """Whether a path keeps all pins, with at least two degrees, and one for all copies of a tied parameter."""
    whole = bounds.problem.of_gpus
    if len(set(degrees)) == 1 or not bounds.is_path(path):
        return False
    if not keeps_pins(bounds.cuts[0], whole.graph, whole.demands, path):
        return False
    if not whole.graph.tied:
        return True
    try:
        check_ties(whole.graph, partition_at(bounds, path), degrees)
    except PlanError:
        return False
    return True


def partition_at(bounds: DegreeBounds, path: Sequence[int]) -> Partition:
    """The stages between a path's cuts."""
    return partition_of(bounds.cuts[0], path)
