"""An order for each rank, never slower than the best named schedule that fits.

Step 1: collect starts: named schedules, list scheduling, warm-ups and blocks with W filled in
(starts.py).
Step 2: local search from the best few, at first for a short time; the better half goes on for twice
as long.
Step 3: CP-SAT polishes parts of the best orders, if it is installed (cp_sat.py).
Step 4: the same without the memory cap, in a tenth of the effort, for the price of the cap.

The search ends at the lower bound of every order (autopart/bounds/any_order_partition.py).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from autopart.bounds.any_order_partition import OrderProblem, least_step
from autopart.errors import InfeasibleError, ScheduleError
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.check import check_schedule
from autopart.solvers.orders import cp_sat
from autopart.solvers.orders.action_numbers import schedule_of
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.evaluation import Clock, fits, peak_stash
from autopart.solvers.orders.starts import Given, Start, Starts
from autopart.solvers.orders.tabu_search import TIGHT, TabuSearch
from autopart.units import format_bytes

SEARCHED = ", local search"
"""Said of orders that the local search improved."""

STARTS = 6
"""How many orders the local search starts from."""

SAME_ORIGIN = 2
"""How many of these may come from one origin."""

FIRST_ROUNDS = 100
"""Rounds of the local search from each start, before the better half goes on."""

SHARE_OF_NAMED = 0.2
"""The share of the effort for making the named schedules."""

SHARE_OF_STARTS = 0.4
"""The share of the effort for the starts."""

SHARE_OF_CP_SAT = 0.4
"""The share of the effort for CP-SAT behind the local search, if it is installed."""

SHARE_WITHOUT_CAP = 0.1
"""The share of the effort for the step without a memory cap."""


class OrderResult(NamedTuple):
    """The fastest schedule found, its bound and its competitors."""

    schedule: Schedule
    name: str
    """The schedule's name; "auto" where no named schedule is equal to it."""
    origin: str
    """Its start: a named schedule, or "list scheduling"; then "local search" if that changed it."""
    step_time: float
    lower_bound: float
    """Seconds that no fitting order can beat."""
    peak_stash_bytes: tuple[int, ...]
    """Each rank's largest stash, in bytes."""
    named: Mapping[str, float]
    """Step seconds for the named schedules that fit and were tried."""
    step_time_without_cap: float
    """Step seconds for the fastest schedule without a memory cap."""
    without_cap: Schedule
    """The fastest schedule without a memory cap."""
    said_bound: float | None
    """Seconds that no fitting order beats, as CP-SAT says: nothing proves it again."""
    ended: bool
    """Whether the search ended by itself, so that more effort gives no other schedule."""


def optimize_orders(
    task: OrderProblem,
    *,
    given: Given | None = None,
    deadline: float = math.inf,
    actions: float = math.inf,
) -> OrderResult:
    """The fastest schedule found; raises InfeasibleError where no order fits the room.

    `given` orders are tried first, however short the time is. `deadline` is a
    `time.perf_counter()` reading in seconds, and `actions` limits the actions that are
    simulated. The search ends before them at the lower bound, or after many rounds without a better
    step. Where the deadline does not end it, equal arguments give equal schedules.
    """
    _refuse_too_little(task)
    effort = Effort(deadline, actions)
    known = named_schedules(task, effort.part(SHARE_OF_NAMED))
    capped = effort.part(1 - SHARE_WITHOUT_CAP) if task.room_bytes is not None else effort
    search = _Search(task, known, capped)
    best = search.run(given)
    said = search.said_bound()
    # Without the cap: its step shows the price of the cap. Its orders may fit after all.
    without = best
    free = task._replace(room_bytes=None)
    limited = task.room_bytes is not None and not effort.is_over
    if limited and best.step > least_step(free) * (1 + TIGHT):
        few = effort if effort.deadline == math.inf == effort.actions_left else effort.part(1.0)
        without = _Search(free, known, few).run(Given(best.origin, schedule_of(task, best.orders)))
        if fits(task, schedule_of(task, without.orders)):
            best = without
    schedule = schedule_of(task, best.orders)
    check_schedule(schedule, task.stage_ranks, task.num_microbatches)
    clock = Clock(task)
    step = clock.run(schedule)
    without_cap = schedule_of(task, without.orders) if without.step < best.step else schedule
    return OrderResult(
        schedule=schedule,
        name=next((n for n, s in known.items() if s == schedule), "auto"),
        origin=best.origin,
        step_time=step,
        lower_bound=min(least_step(task), step),
        peak_stash_bytes=peak_stash(task, schedule),
        named=search.starts.named_steps,
        step_time_without_cap=min(step, clock.run(without_cap)),
        without_cap=without_cap,
        said_bound=said,
        ended=not effort.is_over and not capped.is_over,
    )


def has_room(task: OrderProblem) -> bool:
    """Whether every rank has room for one microbatch on all its stages."""
    return next(_too_little(task), None) is None


def _too_little(task: OrderProblem) -> Iterator[tuple[int, int, int]]:
    """Each rank with too little room for one microbatch, its room and the bytes it needs."""
    for rank, room in enumerate(task.room_bytes or ()):
        needed = sum(task.most_kept(s) for s, own in enumerate(task.stage_ranks) if rank in own)
        if needed > room:
            yield rank, room, needed


def _refuse_too_little(task: OrderProblem) -> None:
    """Raise InfeasibleError unless every rank has room for one microbatch on all its stages."""
    for rank, room, needed in _too_little(task):
        own = [s for s, ranks in enumerate(task.stage_ranks) if rank in ranks]
        raise InfeasibleError(
            f"rank {rank} has room for {format_bytes(room)} of stash, but one microbatch of its "
            f"{'stage keeps' if len(own) == 1 else 'stages keeps'} {format_bytes(needed)}; "
            "take smaller microbatches or more stages"
        )


def named_schedules(task: OrderProblem, effort: Effort) -> dict[str, Schedule]:
    """The named schedules that run on these ranks; at least one, and all if the effort suffices.

    Their placement, microbatch count and backward kind must fit. Bidirectional schedules never do.
    Schedules with overlapped pairs or lent stash are left out: own orders have neither.
    """
    found: dict[str, Schedule] = {}
    for name, kind in KINDS.items():
        if (
            kind.bidirectional
            or kind.pairs
            or kind.lends
            or (kind.splits_backward and not task.split)
        ):
            continue
        if found and effort.is_over:
            break
        try:
            schedule = make_schedule(name, task.stage_ranks, task.num_microbatches)
            check_schedule(schedule, task.stage_ranks, task.num_microbatches)
        except ScheduleError:
            continue
        found[name] = schedule
    return found


class _Search:
    """One search, with or without a memory cap."""

    def __init__(self, task: OrderProblem, named: Mapping[str, Schedule], effort: Effort) -> None:
        self.task, self.effort = task, effort
        self.bound = least_step(task)
        self.starts = Starts(task, named, effort.part(SHARE_OF_STARTS), self.bound)
        self.found: list[Start] = []

    def run(self, given: Given | None) -> Start:
        """The fastest orders found. `given` orders are a start too, if they fit."""
        self.found = self.starts.collect(given)
        # CP-SAT's model counts all ranks from 0.
        if not cp_sat.is_installed() or self.task.rank_starts:
            self._improve(self.effort)
        else:
            self._improve(self.effort.part(1 - SHARE_OF_CP_SAT))
            self._polish()
        return self._smallest()

    def said_bound(self) -> float | None:
        """Seconds that no orders beat, as CP-SAT says; None where it is missing or not needed."""
        if not cp_sat.is_installed() or self.task.rank_starts or self._over():
            return None
        return cp_sat.bound_of(self.starts.times, self.found[0].orders, self.bound, self.effort)

    def _polish(self) -> None:
        """Let CP-SAT improve parts of the fastest orders."""
        best = self.found[0]
        if self._over():
            return
        polished = cp_sat.polish(self.starts.times, best.orders, self.bound, self.effort)
        if polished != best.orders:
            self.starts.times.take(*polished)
            self.found.insert(0, Start(self.starts.times.step, polished, f"{best.origin}, CP-SAT"))

    def _improve(self, effort: Effort) -> None:
        """Search from several starts; the better half of them goes on for twice as long."""
        running: list[tuple[Start, TabuSearch]] = []
        for seed, start in enumerate(_different(self.found)):
            if self._over() or effort.is_over:
                return
            running.append((start, TabuSearch(self.task, start.orders, seed)))
        rounds = FIRST_ROUNDS
        while not self._over() and not effort.is_over:
            for place, (_, search) in enumerate(running):
                share = effort.part(1 / (len(running) - place)) if len(running) > 1 else effort
                search.run(rounds, self.bound, share)
            # The better half goes on, for twice as many rounds.
            running.sort(key=lambda pair: pair[1].step)
            self._keep(*running[0])
            if len(running) == 1 and running[0][1].is_stale(self.bound):
                break
            running = running[: max(1, len(running) // 2)]
            rounds *= 2

    def _keep(self, start: Start, search: TabuSearch) -> None:
        if search.step < self.found[0].step * (1 - TIGHT):
            origin = f"{start.origin.removesuffix(SEARCHED)}{SEARCHED}"
            self.found.insert(0, Start(search.step, search.best, origin))

    def _over(self) -> bool:
        return self.found[0].step <= self.bound * (1 + TIGHT) or self.effort.is_over

    def _smallest(self) -> Start:
        """The orders with the smallest total stash among the fastest ones, up to rounding."""
        most = self.found[0].step * (1 + TIGHT)
        fastest = [found for found in self.found if found.step <= most]
        return min(fastest, key=self._total_stash)

    def _total_stash(self, start: Start) -> int:
        return sum(peak_stash(self.task, schedule_of(self.task, start.orders)))


def _different(found: Sequence[Start]) -> list[Start]:
    """The fastest starts, at most two from one origin."""
    chosen: list[Start] = []
    for start in found:
        if sum(start.origin == other.origin for other in chosen) < SAME_ORIGIN:
            chosen.append(start)
        if len(chosen) == STARTS:
            break
    return chosen
