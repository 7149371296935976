"""The orders of a partition of a problem: what the planner asks for where the schedule is `auto`."""

from collections.abc import Mapping
from typing import NamedTuple

from autopart.cluster import smallest_memory
from autopart.cost import bytes_beside_stash, predict
from autopart.layouts import Layout, alike
from autopart.order_bounds import OrderProblem
from autopart.problem import Problem
from autopart.schedule import Action, Order, Schedule
from autopart.simulator import SyncTime
from autopart.solvers.orders.optimizer import ACTIONS, OrderResult, optimize_orders
from autopart.stage_load import Partition


class _Shown(NamedTuple):
    """The ranks that are ordered: one replica of the pipeline where all are alike, else all."""

    names: tuple[int, ...]
    """The cluster's name of each rank, in the order of their numbers here."""
    stage_ranks: tuple[tuple[int, ...], ...]
    replicas: int


def order_problem(
    problem: Problem, layout: Layout, partition: Partition, *, split: bool
) -> OrderProblem:
    """A partition of a layout as a problem of orders; the layout's schedule is not read. Where all
    replicas of the pipeline are alike, it is the one on the first rank of each stage."""
    stages, syncs = predict(problem, layout, partition)
    shown = _shown(layout)
    number = {name: at for at, name in enumerate(shown.names)}
    return OrderProblem(
        stages=stages,
        stage_ranks=shown.stage_ranks,
        num_microbatches=layout.num_microbatches // shown.replicas,
        syncs=[
            SyncTime(tuple(number[r] for r in sync.ranks if r in number), sync.time)
            for sync in syncs
        ],
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
        split=split,
        stash_bytes=[stage.stash_bytes for stage in stages],
        waiting_bytes=[stage.moving.waiting for stage in stages],
        room_bytes=[
            smallest_memory(problem.cluster, (name,))
            - bytes_beside_stash(
                [s for s, own in zip(stages, layout.stage_ranks, strict=True) if name in own],
                split=split,
            )
            for name in shown.names
        ],
    )


def orders_of_layout(
    problem: Problem,
    layout: Layout,
    partition: Partition,
    *,
    split: bool,
    named: Mapping[str, Schedule] | None = None,
    deadline: float | None = None,
    actions: int = ACTIONS,
    seed: int = 0,
) -> OrderResult:
    """The fastest schedule found for a partition of a layout, on the layout's own ranks, within the
    memory of every GPU; raises InfeasibleError where one microbatch does not fit.

    `named` are schedules of `order_problem` to beat, and `peak_stash_bytes` are of its ranks.
    """
    task = order_problem(problem, layout, partition, split=split)
    found = optimize_orders(task, named, deadline=deadline, actions=actions, seed=seed)
    return found._replace(schedule=_on_all_ranks(layout, found.schedule))


def _shown(layout: Layout) -> _Shown:
    replicas = len(layout.stage_ranks[0])
    if not (alike(layout) and _replicas_apart(layout, replicas)):
        used = {rank for ranks in layout.stage_ranks for rank in ranks}
        names = tuple(range(1 + max(used)))
        return _Shown(names, layout.stage_ranks, 1)
    names = tuple(dict.fromkeys(ranks[0] for ranks in layout.stage_ranks))
    return _Shown(names, tuple((names.index(ranks[0]),) for ranks in layout.stage_ranks), replicas)


def _replicas_apart(layout: Layout, replicas: int) -> bool:
    """Whether no rank runs stages in two replicas of the pipeline."""
    places = {(rank, at) for ranks in layout.stage_ranks for at, rank in enumerate(ranks)}
    return len(places) == len({rank for rank, _ in places}) and replicas > 0


def _on_all_ranks(layout: Layout, schedule: Schedule) -> Schedule:
    """The orders of one replica on the ranks of each."""
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
