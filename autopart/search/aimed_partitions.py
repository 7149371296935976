"""Partitions for own orders, by the step that lists by target times reach on them.

A small bound does not say that good orders exist: stages of uneven lengths may leave ranks idle.
Lists by target times (autopart/solvers/orders/target_times.py) tell that in some milliseconds.

Step 1: a glance at each candidate. Only the fastest ones go on.
Step 2: one cut after another moves, with the targets kept and changed a little, as long as the step
falls.
"""

import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.activations.best_policies import best_policies
from autopart.bounds.any_order_partition import least_step
from autopart.cost.cuts import partition_keeps_pins, partition_of
from autopart.records.layouts import Layout, Partition
from autopart.search.layout_search import LayoutSearch
from autopart.search.objectives import Path
from autopart.solvers.orders.action_numbers import schedule_of
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.of_layout import NOTHING_KNOWN, Known, order_problem, splits_with
from autopart.solvers.orders.optimizer import has_room
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.starts import Given
from autopart.solvers.orders.target_times import Targets, TargetSearch
from autopart.solvers.own_partitions import near_paths
from autopart.stopping.time_limit import time_left

GLANCE = 300_000
"""Actions listed for a glance at one partition."""

HOPEFUL = 1.05
"""Times the best step so far: partitions whose glance takes longer are dropped."""

CHANGES = 25
"""Changes to the targets behind each moved cut."""

STALE = 400
"""Moved cuts in a row without a shorter step, after which a search ends."""


class Candidate(NamedTuple):
    """A partition whose orders may be optimized."""

    bound: float
    """Seconds that no order of it can beat."""
    layout: Layout
    partition: Partition
    known: Known = NOTHING_KNOWN


class _Aimed(NamedTuple):
    """A partition, and the targets that gave its step in seconds."""

    step: float
    candidate: Candidate
    path: Path
    targets: Targets


def aimed_partitions(
    found: LayoutSearch, given: Sequence[tuple[Candidate, Path]], until: float, most: int
) -> list[Candidate]:
    """Up to `most` candidates with short steps, the shortest first."""
    # Step 1: a glance at each.
    seen: list[_Aimed] = []
    looks_end = time.perf_counter() + 0.4 * time_left(until)
    for place, (candidate, path) in enumerate(given):
        share = time_left(looks_end) / (len(given) - place)
        effort = Effort(time.perf_counter() + share, GLANCE)
        aimed = _glance(found, candidate, path, effort)
        if aimed is not None:
            seen.append(aimed)
    # A partition far behind the best step would take time from the named schedules.
    most_step = HOPEFUL * found.best.value
    seen = [each for each in seen if each.step <= most_step]
    seen = sorted(seen, key=lambda each: each.step)[:most]
    # Step 2: the fastest ones move their cuts.
    for place, each in enumerate(seen):
        share = time_left(until) / (len(seen) - place)
        seen[place] = _moved(found, each, time.perf_counter() + share)
    return [each.candidate for each in sorted(seen, key=lambda each: each.step)]


def _glance(
    found: LayoutSearch,
    candidate: Candidate,
    path: Path,
    effort: Effort,
    start: Targets | None = None,
    changes: int = GLANCE,
) -> _Aimed | None:
    """The step that lists reach; None where one microbatch does not fit, or no time is left."""
    layout, partition = candidate.layout, candidate.partition
    if effort.is_over:
        return None
    policies = candidate.known.policies
    split = splits_with(policies)
    task = order_problem(found.problem, layout, partition, split=split, policies=policies)
    if not has_room(task):
        return None
    search = TargetSearch(OrderTimes(task), effort, start)
    search.run(changes, candidate.bound)
    given = Given("target times", schedule_of(task, search.orders))
    known = Known(given=given, policies=policies)
    return _Aimed(search.step, candidate._replace(known=known), path, search.targets)


def _moved(found: LayoutSearch, best: _Aimed, until: float) -> _Aimed:
    """The best partition that moves of cuts reach."""
    effort, dice, stale = Effort(until), random.Random(0), 0
    while stale < STALE and not effort.is_over:
        near = list(paths_near(found, best.path))
        dice.shuffle(near)
        improved = False
        for path in near:
            if stale >= STALE or effort.is_over:
                break
            stale += 1
            candidate = _candidate_of(found, best.candidate, path)
            if candidate.bound >= best.step:
                continue
            moved = _glance(found, candidate, path, effort, best.targets, CHANGES)
            if moved is not None and moved.step < best.step:
                best, stale, improved = moved, 0, True
                break
        if not improved:
            break
    return best


def _candidate_of(found: LayoutSearch, moved: Candidate, path: Path) -> Candidate:
    """A path over the cuts as a candidate, with the best policies under the orders before its cuts moved."""
    problem, layout, partition = found.problem, moved.layout, partition_of(found.cuts, path)
    policies = None
    if moved.known.policies is not None and moved.known.given is not None:
        policies = best_policies(problem, layout, partition, moved.known.given.schedule)
    task = order_problem(problem, layout, partition, split=True, policies=policies)
    return Candidate(least_step(task), layout, partition, Known(policies=policies))


def paths_near(found: LayoutSearch, path: Path) -> Iterator[Path]:
    """The paths near one, without those that break pins or groups of layers."""
    graph, demands = found.problem.graph, found.problem.demands
    for near in near_paths(found.cuts, path):
        if partition_keeps_pins(partition_of(found.cuts, near), graph, demands):
            yield near
