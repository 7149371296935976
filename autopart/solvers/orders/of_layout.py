"""A partition's own orders, for `--schedule auto`."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from autopart.activations.policies import StagePolicies
from autopart.bounds.any_order_partition import OrderProblem, rank_starts
from autopart.cost.memory import bytes_beside_stash
from autopart.cost.memory_limits import free_bytes
from autopart.errors import InfeasibleError, ScheduleError
from autopart.pricing import predict
from autopart.records.layouts import Layout, Partition, replicas_alike
from autopart.records.problem import CUSTOM, Problem
from autopart.schedules.actions import Action, Order, Schedule, microbatches_per_replica
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.costs import SyncTime
from autopart.solvers.orders.evaluation import fits, peak_stash
from autopart.solvers.orders.optimizer import OrderResult, optimize_orders
from autopart.solvers.orders.starts import Given
from autopart.stopping.time_limit import time_left


class _Shown(NamedTuple):
    """The ranks that get orders: one pipeline replica where replicas are alike, else all ranks."""

    names: tuple[int, ...]
    """The cluster's rank for each rank in the order problem."""
    stage_ranks: tuple[tuple[int, ...], ...]
    replicas: int


def splits_with(policies: Sequence[StagePolicies] | None) -> bool:
    """Whether orders split backwards from the start: recomputed stash is back between I and W."""
    return policies is None or all(own.keeps_all for own in policies)


class Known(NamedTuple):
    """Facts about a partition on its ranks that a search for orders may start from."""

    peak_bytes: tuple[int, ...] | None = None
    """Peak bytes on each rank under the layout's named schedule or the given orders, where they fit."""
    given: Given | None = None
    """Orders to start from, where the layout names no schedule. Its ranks are `order_problem`'s."""
    policies: tuple[StagePolicies, ...] | None = None
    """The policies of each stage; None for the best ones under the layout's schedule."""


NOTHING_KNOWN = Known()


def order_problem(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    *,
    split: bool,
    policies: Sequence[StagePolicies] | None = None,
) -> OrderProblem:
    """The order problem for a partition under given policies; None takes the best ones under the layout's schedule.

    Where all pipeline replicas are alike, it has each stage's first rank only.
    """
    stages, syncs = predict(problem, layout, partition, policies)
    shown = _shown(layout)
    number = {name: at for at, name in enumerate(shown.names)}
    task = OrderProblem(
        stages=stages,
        stage_ranks=shown.stage_ranks,
        num_microbatches=microbatches_per_replica(layout.num_microbatches, shown.replicas),
        syncs=[
            SyncTime(tuple(number[r] for r in sync.ranks if r in number), sync.time, sync.parts)
            for sync in syncs
        ],
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
        rendezvous=problem.cluster.sends == "rendezvous",
        split=split,
        stash_bytes=[stage.stash_bytes for stage in stages],
        waiting_bytes=[stage.moving.waiting for stage in stages],
        room_bytes=[
            free_bytes(
                problem.cluster,
                (name,),
                bytes_beside_stash(
                    [s for s, own in zip(stages, layout.stage_ranks, strict=True) if name in own],
                    split=split,
                ),
            )
            for name in shown.names
        ],
    )
    return task._replace(rank_starts=rank_starts(task)) if problem.objective == "period" else task


def orders_of_layout(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    *,
    split: bool,
    known: Known = NOTHING_KNOWN,
    deadline: float = math.inf,
    actions: float = math.inf,
) -> OrderResult:
    """The fastest schedule found for a partition on the layout's ranks, within each GPU's memory.

    The layout's named schedule is tried first, or the known orders. The room for stash is counted
    without knowing the orders, so it may be too small for the named schedule, or too large. So the
    caller must check that the result fits. With peaks of the first orders, the room grows to the
    bytes that they leave, and backwards stay whole if their backwards are.

    Recomputed stash is back between I and W. So orders of whole backwards come first there, and split
    ones start from them.

    The result's `peak_stash_bytes` belong to the ranks in `order_problem`. Raises InfeasibleError
    where one microbatch does not fit.
    """
    asked = _Asked(problem, layout, partition, known)
    if split and not splits_with(known.policies):
        found = asked.whole_then_split(deadline, actions)
    else:
        found = asked.found(asked.first(), deadline, actions, split=split)
    return found._replace(
        schedule=on_all_ranks(layout, found.schedule),
        without_cap=on_all_ranks(layout, found.without_cap),
    )


class _Asked(NamedTuple):
    """A partition on its ranks whose orders are asked for."""

    problem: Problem
    layout: Layout
    partition: Partition
    known: Known

    def first(self) -> Given | None:
        """The orders of the layout's named schedule, or the known ones."""
        return _named_orders(self.layout, self._task(split=True)) or self.known.given

    def whole_then_split(self, deadline: float, actions: float) -> OrderResult:
        """The faster one of orders with whole backwards, and of orders that may split them."""
        first, half = self.first(), time.perf_counter() + time_left(deadline) / 2
        whole = first if first and _has_whole_backwards(first) else None
        found = self.found(whole, half, actions / 2, split=False)
        again, asked = first, self
        if whole or first is None:
            # The peaks belong to the first orders.
            again = Given(found.origin, found.schedule)
            asked = self._replace(known=self.known._replace(peak_bytes=None))
        try:
            other = asked.found(again, deadline, actions / 2, split=True)
        except InfeasibleError:
            return found
        return min(found, other, key=lambda one: one.step_time)

    def found(
        self, first: Given | None, deadline: float, actions: float, *, split: bool
    ) -> OrderResult:
        """The fastest orders on the ranks of the order problem."""
        task, peaks = self._task(split=split), self.known.peak_bytes
        if first is not None and peaks is not None and not fits(task, first.schedule):
            task = self._task(split=split and not _has_whole_backwards(first))
            task = _with_room_for(self.problem, self.layout, task, first, peaks)
        return optimize_orders(task, given=first, deadline=deadline, actions=actions)

    def _task(self, *, split: bool) -> OrderProblem:
        policies = self.known.policies
        return order_problem(
            self.problem, self.layout, self.partition, split=split, policies=policies
        )


def _named_orders(layout: Layout, task: OrderProblem) -> Given | None:
    """The orders of the layout's named schedule; None where it has none."""
    if layout.schedule == CUSTOM:
        return None
    try:
        named = make_schedule(layout.schedule, task.stage_ranks, task.num_microbatches)
    except ScheduleError:
        return None
    return Given(layout.schedule, named)


def _with_room_for(
    problem: Problem,
    layout: Layout,
    task: OrderProblem,
    first: Given,
    peak_bytes: Sequence[int],
) -> OrderProblem:
    """The task with room for orders that have these peaks on the cluster's ranks."""
    assert task.room_bytes is not None
    stash = peak_stash(task, first.schedule)
    left = [
        free_bytes(problem.cluster, (name,), peak_bytes[name] - own)
        for name, own in zip(_shown(layout).names, stash, strict=True)
    ]
    return task._replace(
        room_bytes=[max(*pair) for pair in zip(task.room_bytes, left, strict=True)]
    )


def _has_whole_backwards(given: Given) -> bool:
    """Whether no backward is split."""
    return all(action.op in "FB" for order in given.schedule for action in order)


def _shown(layout: Layout) -> _Shown:
    replicas = len(layout.stage_ranks[0])
    if not (replicas_alike(layout) and _replicas_apart(layout, replicas)):
        used = {rank for ranks in layout.stage_ranks for rank in ranks}
        names = tuple(range(1 + max(used)))
        return _Shown(names, layout.stage_ranks, 1)
    names = tuple(dict.fromkeys(ranks[0] for ranks in layout.stage_ranks))
    return _Shown(names, tuple((names.index(ranks[0]),) for ranks in layout.stage_ranks), replicas)


def _replicas_apart(layout: Layout, replicas: int) -> bool:
    """Whether each rank belongs to one pipeline replica."""
    places = {(rank, at) for ranks in layout.stage_ranks for at, rank in enumerate(ranks)}
    return len(places) == len({rank for rank, _ in places}) and replicas > 0


def on_all_ranks(layout: Layout, schedule: Schedule) -> Schedule:
    """One replica's orders, repeated on all replicas' ranks; `schedule` has the ranks of `order_problem`."""
    shown = _shown(layout)
    if shown.replicas == 1 and shown.names == tuple(range(len(schedule))):
        return schedule
    orders: list[Order] = [()] * (1 + max(r for ranks in layout.stage_ranks for r in ranks))
    for replica in range(shown.replicas):
        for order in schedule:
            if order:
                rank = layout.stage_ranks[order[0].stage][replica]
                orders[rank] = tuple(
                    Action(s, op, m * shown.replicas + replica) for s, op, m in order
                )
    return tuple(orders)
