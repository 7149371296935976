"""Orders to start a search from.

Step 1: the named schedules that fit.
Step 2: W filled (weight_filling.py) into orders of F and I. These are one forward and one backward
in turn behind several warm-ups, blocks on a V, and named schedules that exceed the room. Where
backwards may not be split, they stay whole.
Step 3: lists by target times (target_times.py), for stages of any lengths.
Step 4: list scheduling with several priorities and warm-ups, whole and split backwards.
Step 5: the best warm-ups change stage by stage while that helps.
Step 6: the fastest orders found lose their W and are filled anew.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from autopart.bounds.any_order_partition import OrderProblem
from autopart.schedules.actions import Schedule
from autopart.solvers.orders.action_numbers import Orders
from autopart.solvers.orders.building_blocks import (
    PERIOD,
    Block,
    blocks,
    is_wave,
    order_of_block,
)
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.list_scheduling import Policy, list_schedule
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.target_times import Targets, TargetSearch
from autopart.solvers.orders.warm_ups import (
    WARMUPS,
    falling_warmups,
    near,
    orders_of_warmup,
    warmup_of,
)
from autopart.solvers.orders.weight_filling import Numbers, fill, without_weights

TIGHT = 1e-9
"""A relative difference that counts as rounding."""

PATIENCES = (0.0, 0.5)
"""Waiting allowed for a preferred action, as a multiple of the current action's seconds."""

FILLED = ", W filled in"
"""Said of orders whose W are put in anew."""

BLOCK = "building block"
"""Said of orders from building_blocks.py."""

HOPELESS = 1.3
"""Times the best step: orders of F and I that take longer get no other goal."""

BLOCKS = 60
"""How many building blocks are tried."""

TARGET_SEARCHES = 3
"""Searches over target times, with other random changes from the same beginning."""

MANY = 100
"""Changes to target times, before the search looks whether it ends."""

REFILLED = 12
"""How many of the orders found so far are filled with W anew."""


class Start(NamedTuple):
    """Orders that fit, and their step in seconds."""

    step: float
    orders: Orders
    origin: str


class Given(NamedTuple):
    """A schedule from elsewhere."""

    origin: str
    schedule: Schedule


class Starts:
    """The orders found so far."""

    def __init__(
        self, task: OrderProblem, named: Mapping[str, Schedule], effort: Effort, bound: float
    ) -> None:
        self.task, self.named, self.effort, self.bound = task, named, effort, bound
        self.times = OrderTimes(task)
        self.found: dict[Orders, Start] = {}
        self.named_steps: dict[str, float] = {}
        """Step seconds for the named schedules that fit."""
        self._limits: list[tuple[float, Policy]] = []
        self._unfitting: list[tuple[str, list[list[int]]]] = []

    def collect(self, given: Given | None = None) -> list[Start]:
        """Find starts until the effort is over or one meets the bound; the best first."""
        if given is not None and self.times.take(*self.times.numbers_of(given.schedule)):
            self._offer(given.origin)
        self._take_named()
        # One list schedule is made even if the time is over, unless some other order fits.
        policies = list(_policies(self.task))
        if not self.found or not self.effort.is_over:
            self._list(policies[0])
        if not self._over(self.effort):
            self._aim(self.effort.part(0.5))
        if not self._over(self.effort):
            self._fill(self._patterns(), self.effort.part(0.5))
        listing = self.effort.part(0.5)
        for policy in policies[1:]:
            if self._over(listing):
                break
            self._list(policy)
        if self._limits:
            self._change_warmups(self.effort.part(0.5))
        if self.task.split:
            self._fill(self._fastest_without_weights(), self.effort)
        return sorted(self.found.values(), key=lambda found: found.step)

    def _take_named(self) -> None:
        for name, schedule in self.named.items():
            if self.found and self.effort.is_over:
                break
            if self.times.take(*self.times.numbers_of(schedule)):
                step = self._offer(name)
                if step < math.inf:
                    self.named_steps[name] = step
                else:
                    self._unfitting.append((name, without_weights(self.times)))

    @property
    def best(self) -> Start:
        """The fastest start."""
        return min(self.found.values(), key=lambda found: found.step)

    def _over(self, effort: Effort) -> bool:
        if self.found and self.best.step <= self.bound * (1 + TIGHT):
            return True
        return effort.is_over or self.effort.is_over

    def _offer(self, origin: str) -> float:
        """Keep the current orders if they fit; returns their step."""
        times = self.times
        self.effort.spend(sum(map(len, times.orders)))
        if not times.fits:
            return math.inf
        self.found.setdefault(times.current, Start(times.step, times.current, origin))
        return times.step

    def _list(self, policy: Policy) -> float:
        schedule = list_schedule(self.task, policy)
        self.effort.spend(sum(map(len, schedule)))
        orders = self.times.numbers_of(schedule)
        step = self._offer("list scheduling") if self.times.take(*orders) else math.inf
        self._limits.append((step, policy))
        return step

    def _aim(self, effort: Effort) -> None:
        """Lists by target times, from several random searches."""
        first: Targets | None = None
        for seed in range(TARGET_SEARCHES):
            search = TargetSearch(self.times, effort, first, seed)
            first = first or search.targets
            while not search.is_over(self.bound) and not effort.is_over:
                search.run(MANY, self.bound)
            if self.times.take(*search.orders):
                self._offer("target times")
            if self._over(effort):
                return

    def _change_warmups(self, effort: Effort) -> None:
        """Change the warm-up by one, for a stage or for all stages up to it, while that helps."""
        step, policy = min(self._limits, key=lambda pair: pair[0])
        improved = True
        while improved:
            improved = False
            for limits in near(policy.limits, self.task.num_microbatches):
                if self._over(effort):
                    return
                after = self._list(policy._replace(limits=limits))
                if after < step * (1 - TIGHT):
                    step, policy, improved = after, policy._replace(limits=limits), True
                    break

    def _fill(self, given: Iterable[tuple[str, Numbers]], effort: Effort) -> None:
        """Fill orders of F and I with W."""
        for origin, numbers in given:
            # Goals for the step: no idle time at all, the bound, halfway to the best, the best,
            # and as much idle time as the gaps have. Blocks are many: here they get the first goal,
            # and all of them later if they are among the fastest.
            best = self.best.step
            goals = (0.0, self.bound, (self.bound + best) / 2, best, math.inf)
            for goal in goals[:1] if origin == BLOCK else goals:
                if self._over(effort):
                    return
                self.times.turn_all(whole=not self.task.split)
                filled = fill(self.times, numbers, goal)
                if filled is None or not self.times.take(filled, tuple(self.times.whole)):
                    break
                step = self._offer(f"{origin}{FILLED if self.task.split else ''}")
                if step > HOPELESS * best or not self.task.split:
                    break

    def _patterns(self) -> Iterator[tuple[str, Numbers]]:
        """Warm-ups, named schedules that exceed the room, and blocks on a V."""
        for limits in falling_warmups(self.task):
            yield "warm-up", orders_of_warmup(self.task, limits)
        yield from self._unfitting
        if is_wave(self.task):
            for block in _fitting_blocks(self.task)[:BLOCKS]:
                yield BLOCK, order_of_block(block, self.task.num_microbatches)

    def _fastest_without_weights(self) -> Iterator[tuple[str, Numbers]]:
        for start in sorted(self.found.values(), key=lambda found: found.step)[:REFILLED]:
            yield (
                start.origin.removesuffix(FILLED),
                [[x for x in order if x % 3 < 2] for order in start.orders.numbers],
            )


def _policies(task: OrderProblem) -> Iterator[Policy]:
    ranks = [r for own in task.stage_ranks for r in own]
    directions = (
        [(True, False), (False, False), (True, True), (False, True)]
        if len(set(ranks)) < len(ranks)
        else [(True, False)]
    )
    split = list(_split_stages(task))
    for patience in PATIENCES:
        for factor in WARMUPS:
            limits = warmup_of(task, factor)
            for stages in split:
                for ops in ("BFW", "BWF", "FBW") if stages else ("BF", "FB"):
                    for forward, backward in directions:
                        yield Policy(tuple(ops), limits, forward, backward, stages, patience)


def _split_stages(task: OrderProblem) -> Iterator[frozenset[int]]:
    """The stages that split their backwards: all or none; where that costs seconds, also others."""
    count = len(task.stages)
    if not task.split:
        yield frozenset()
        return
    yield frozenset(range(count))
    yield frozenset()
    if not task.action_overhead and not any(stage.split_time for stage in task.stages):
        return
    # Nothing waits for the first stage's I.
    if count > 2:
        yield frozenset(range(1, count))
    for stage in range(count):
        yield frozenset((stage,))


def _fitting_blocks(task: OrderProblem) -> list[Block]:
    """Blocks whose microbatches in flight fit, the ones with the most in flight first."""
    if task.room_bytes is None:
        most = math.inf
    else:
        most = min(
            room / max(task.most_kept(s) for s, own in enumerate(task.stage_ranks) if r in own)
            for r, room in enumerate(task.room_bytes)
        )
    found = list(blocks(len(task.stages) // 2))
    return sorted(
        found, key=lambda block: (block.stay > PERIOD * most, abs(block.stay - PERIOD * most))
    )
