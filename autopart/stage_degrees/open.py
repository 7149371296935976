"""The plans that bounds leave open: replicas, degrees and cuts, those with the smallest bound first.

A plan begins with its replicas, schedule and number of stages, and grows stage by stage. The bound of a
beginning is the largest b of its stages and V of the rest (autopart/stage_degrees/completions.py). So
beginnings are followed in the order of their bounds, and the next one bounds all that were not
followed yet.
"""

import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cost.cuts import keeps_pins, partition_of
from autopart.errors import PlanError
from autopart.records.layouts import Partition
from autopart.stage_degrees.bounds import DegreeBounds
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


class _Children(NamedTuple):
    """A beginning with one more stage each, smallest bounds first."""

    of: _Beginning
    bounds: Sequence[float]
    degrees: Sequence[int]
    cuts: Sequence[int]


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
        if shape is not None:
            self._follow_shape(shape, 0.0)
            return
        for least, schedule, replicas in every.eased:
            entry = (least, 0, next(self._ids), (schedule, replicas), 0)
            heapq.heappush(self._waiting, entry)

    @property
    def bound(self) -> float:
        """Seconds that no plan beats which was not returned yet; infinite where there is none."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def next_below(self, seconds: float) -> OpenPlan | None:
        """The next plan with a bound below `seconds`; None where there is none."""
        while self._waiting and self._waiting[0][0] < seconds:
            check_time()
            bound, _, _, first, at = self._waiting[0]
            if not isinstance(first, _Children):
                # Where this runs out of time, it waits on.
                rest = self.every.of(*first)
                heapq.heappop(self._waiting)
                for stages in rest.counts:
                    self._follow_shape((rest, stages), bound)
                continue
            heapq.heappop(self._waiting)
            if at + 1 < len(first.bounds):
                self._push(first, at + 1)
            one = _grown(first, at)
            if one.behind:
                self._follow(one, bound)
            elif is_allowed(self.bounds, one.degrees, one.path):
                return OpenPlan(bound, one.rest.schedule, one.rest.replicas, one.degrees, one.path)
        return None

    def _follow_shape(self, shape: Shape, bound: float) -> None:
        rest, stages = shape
        self._follow(_Beginning(rest, stages, rest.room, (), (0,)), bound)

    def _push(self, children: _Children, at: int) -> None:
        # Of equal bounds, the longest beginning comes first.
        entry = (children.bounds[at], children.of.behind, next(self._ids), children, at)
        heapq.heappush(self._waiting, entry)

    def _follow(self, one: _Beginning, bound: float) -> None:
        """Wait with all beginnings that have one stage more."""
        rest, behind, start = one.rest, one.behind - 1, one.path[-1]
        found: list[tuple[np.ndarray, int]] = []
        for degree in self.bounds.problem.degrees:
            if degree > one.room:
                continue
            own = self.bounds.stage(rest.schedule, rest.replicas, degree, behind)[start]
            if behind:
                own = np.maximum(own, rest.values[behind - 1][one.room - degree])
            else:
                own = np.where(np.arange(len(own)) == len(own) - 1, own, np.inf)
            found.append((np.maximum(own, bound), degree))
        if not found:
            return
        values = np.concatenate([own for own, _ in found])
        degrees = np.repeat([degree for _, degree in found], len(found[0][0]))
        cuts = np.tile(np.arange(len(found[0][0])), len(found))
        order = np.argsort(values, kind="stable")
        order = order[np.isfinite(values[order])]
        if len(order):
            lists = (values[order].tolist(), degrees[order].tolist(), cuts[order].tolist())
            self._push(_Children(one, *lists), 0)


def _grown(children: _Children, at: int) -> _Beginning:
    one, degree, cut = children.of, children.degrees[at], children.cuts[at]
    return _Beginning(
        one.rest,
        one.behind - 1,
        one.room - degree,
        (*one.degrees, degree),
        (*one.path, cut),
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
