"""An order for every rank of a given partition: the best of named schedules, list scheduling and local
search, never slower than the best named schedule that fits.

List scheduling is tried with several priorities, and with several warmups. Symbols: p the busiest
rank's seconds for one microbatch; t(s) the seconds from the F of a microbatch on stage s to the end of
its backward, if nothing made it wait. A stage is fed all the time only if t(s) / p microbatches are in flight
on it, so warmups are ceil(a t(s) / p) for several a; for equal stages and free sends a = 1 is 1F1B's
k - s. The best warmups are then changed stage by stage while that helps, and the best few schedules go
to the local search.

Nothing is better than the lower bound of every order (autopart/order_bounds.py): there the search ends.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from autopart.errors import InfeasibleError, ScheduleError
from autopart.order_bounds import OrderProblem, least_step, stays
from autopart.schedule import Schedule, check_schedule
from autopart.schedules import KINDS, make_schedule
from autopart.solvers.orders.evaluation import Clock, fits, peak_stash
from autopart.solvers.orders.listing import Policy, list_schedule
from autopart.solvers.orders.local_search import TIGHT, LocalSearch
from autopart.units import format_bytes

WARMUPS = (1.0, 1.15, 1.3, 1.5, 2.0, 3.0, None)
"""Factors a of the warmups; None for as many microbatches as the room allows."""

PATIENCES = (0.0, 0.5)
"""How long a rank may wait for an action that it prefers, in durations of the one at hand."""

ACTIONS = 3_000_000
"""Actions simulated or listed: some seconds."""

STARTS = 3
"""Schedules that the local search begins from."""


class OrderResult(NamedTuple):
    """The fastest schedule found, and what it was found against."""

    schedule: Schedule
    name: str
    """The named schedule that it is; "auto" where it is none."""
    origin: str
    """Where it came from: a named schedule, or "list scheduling"; then "local search", if it was
    changed by it."""
    step_time: float
    lower_bound: float
    """No order fits that is faster."""
    peak_stash_bytes: tuple[int, ...]
    """For each rank."""
    named: Mapping[str, float]
    """The step times of the named schedules that fit."""
    step_time_without_cap: float
    """Of the fastest schedule found if every rank had room for all: what the cap costs is the
    difference."""


class _Found(NamedTuple):
    step_time: float
    schedule: Schedule
    origin: str


def optimize_orders(
    task: OrderProblem,
    named: Mapping[str, Schedule] | None = None,
    *,
    deadline: float | None = None,
    actions: int = ACTIONS,
    seed: int = 0,
) -> OrderResult:
    """The fastest schedule found; raises InfeasibleError where no rank order fits the room.

    `named` are the schedules to beat (`named_schedules`, if None); `deadline` is a reading of
    `time.perf_counter()`. Without one, the same arguments give the same schedule.
    """
    _refuse_too_little(task)
    known = named_schedules(task) if named is None else dict(named)
    free = task._replace(room_bytes=None)
    without = _Search(free, known, deadline, actions // 2, seed).run()
    if fits(task, without.schedule):
        best = without
    else:
        best = _Search(task, known, deadline, actions // 2, seed).run()
        without = min(without, best, key=lambda found: found.step_time)
    clock = Clock(task)
    steps = {n: clock.run(s).step_time for n, s in known.items() if fits(task, s)}
    same = next((n for n, s in known.items() if s == best.schedule), "auto")
    check_schedule(best.schedule, task.stage_ranks, task.num_microbatches)
    return OrderResult(
        schedule=best.schedule,
        name=same,
        origin=best.origin,
        step_time=best.step_time,
        lower_bound=min(least_step(task), best.step_time),
        peak_stash_bytes=peak_stash(task, best.schedule),
        named=steps,
        step_time_without_cap=without.step_time,
    )


def _refuse_too_little(task: OrderProblem) -> None:
    """Raise InfeasibleError unless every rank has room for one microbatch of its stages."""
    for rank, room in enumerate(task.room_bytes or ()):
        own = [s for s, ranks in enumerate(task.stage_ranks) if rank in ranks]
        needed = sum(task.most_kept(s) for s in own)
        if needed > room:
            raise InfeasibleError(
                f"rank {rank} has room for {format_bytes(room)} of stash, but one microbatch of its "
                f"{'stage keeps' if len(own) == 1 else 'stages keeps'} {format_bytes(needed)}; "
                "take smaller microbatches or more stages"
            )


def named_schedules(task: OrderProblem) -> dict[str, Schedule]:
    """The field's schedules that can run on these ranks: those of one direction whose placement,
    number of microbatches and halves of backwards fit."""
    found: dict[str, Schedule] = {}
    for name, kind in KINDS.items():
        if kind.bidirectional or (kind.splits_backward and not task.split):
            continue
        try:
            schedule = make_schedule(name, task.stage_ranks, task.num_microbatches)
            check_schedule(schedule, task.stage_ranks, task.num_microbatches)
        except ScheduleError:
            continue
        found[name] = schedule
    return found


class _Search:
    """One search, with or without a memory cap."""

    def __init__(
        self,
        task: OrderProblem,
        named: Mapping[str, Schedule],
        deadline: float | None,
        actions: int,
        seed: int,
    ) -> None:
        self.task, self.named, self.seed, self.deadline = task, named, seed, deadline
        self.clock = Clock(task)
        self.clock.actions_left = actions
        self.bound = least_step(task)
        self.found: dict[Schedule, _Found] = {}
        self.limits: list[tuple[float, Policy]] = []

    def run(self) -> _Found:
        for name, schedule in self.named.items():
            if fits(self.task, schedule):
                self._take(schedule, name)
        # However little time there is, one schedule that fits is made.
        policies = list(self._policies())
        self._list(policies[0])
        for policy in policies[1:]:
            if self._over(self.clock.actions_left // 2):
                break
            self._list(policy)
        self._change_warmups()
        return self._search_near()

    @property
    def best(self) -> _Found:
        return min(self.found.values(), key=lambda found: found.step_time)

    def _over(self, left: int) -> bool:
        if self.found and self.best.step_time <= self.bound * (1 + TIGHT):
            return True
        return left <= 0 or (self.deadline is not None and time.perf_counter() > self.deadline)

    def _take(self, schedule: Schedule, origin: str) -> float:
        if schedule not in self.found:
            step = self.clock.step_time(schedule)
            if step is None:
                return math.inf
            self.found[schedule] = _Found(step, schedule, origin)
        return self.found[schedule].step_time

    def _list(self, policy: Policy) -> float:
        schedule = list_schedule(self.task, policy)
        self.clock.actions_left -= sum(map(len, schedule))
        step = self._take(schedule, "list scheduling")
        self.limits.append((step, policy))
        return step

    def _policies(self) -> Iterator[Policy]:
        shared = len({r for own in self.task.stage_ranks for r in own}) < sum(
            map(len, self.task.stage_ranks)
        )
        ways = (
            [(True, False), (False, False), (True, True), (False, True)]
            if shared
            else [(True, False)]
        )
        ops = [("BFW", True), ("BWF", True), ("FBW", True)] if self.task.split else []
        for patience in PATIENCES:
            for factor in WARMUPS:
                limits = self._warmup(factor)
                for preferred, halves in (*ops, ("BF", False), ("FB", False)):
                    for forward, backward in ways:
                        yield Policy(tuple(preferred), limits, forward, backward, halves, patience)

    def _warmup(self, factor: float | None) -> tuple[int, ...]:
        m = self.task.num_microbatches
        if factor is None:
            return (m,) * len(self.task.stages)
        period = _period(self.task)
        if not period:
            return (m,) * len(self.task.stages)
        # A rank that needs a whole number of microbatches needs no more for rounding.
        return tuple(
            max(1, min(m, math.ceil(factor * stay / period - TIGHT))) for stay in stays(self.task)
        )

    def _change_warmups(self) -> None:
        """One more or one less in flight, for a stage or for all stages up to it, while that helps."""
        step, policy = min(self.limits, key=lambda pair: pair[0])
        improved = True
        while improved:
            improved = False
            for limits in _near(policy.limits, self.task.num_microbatches):
                if self._over(self.clock.actions_left - self.clock.actions_left // 4):
                    return
                after = self._list(policy._replace(limits=limits))
                if after < step * (1 - TIGHT):
                    step, policy, improved = after, policy._replace(limits=limits), True
                    break

    def _search_near(self) -> _Found:
        best = sorted(self.found.values(), key=lambda found: found.step_time)
        for place, start in enumerate(best[:STARTS]):
            if self._over(self.clock.actions_left):
                break
            whole = self.clock.actions_left
            self.clock.actions_left = whole // (STARTS - place)
            search = LocalSearch(self.clock, self.bound, self.deadline, self.seed + place)
            schedule, step = search.improve(start.schedule)
            self.clock.actions_left += whole - whole // (STARTS - place)
            if schedule not in self.found:
                self.found[schedule] = _Found(step, schedule, f"{start.origin}, local search")
        return self._smallest()

    def _smallest(self) -> _Found:
        """Of the fastest schedules, but for rounding, the one whose ranks hold least in all."""
        most = self.best.step_time * (1 + TIGHT)
        fastest = [found for found in self.found.values() if found.step_time <= most]
        return min(fastest, key=lambda found: sum(peak_stash(self.task, found.schedule)))


def _near(limits: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    for stage in range(len(limits)):
        for change in (1, -1):
            for first in dict.fromkeys((stage, 0)):
                changed = [*limits]
                for s in range(first, stage + 1):
                    changed[s] = max(1, min(most, changed[s] + change))
                if tuple(changed) != tuple(limits):
                    yield tuple(changed)


def _period(task: OrderProblem) -> float:
    """The busiest rank's compute seconds for one microbatch, replicas sharing them out."""
    busy: dict[int, float] = {}
    for stage, ranks in zip(task.stages, task.stage_ranks, strict=True):
        seconds = stage.forward_time + stage.backward_time + 2 * task.action_overhead
        for rank in ranks:
            busy[rank] = busy.get(rank, 0.0) + seconds / len(ranks)
    return max(busy.values())
