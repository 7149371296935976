"""Every order of actions on very small pipelines: two microbatches on two ranks, or one on a few more stages."""

import functools
import itertools
from collections.abc import Iterator, Sequence

from autopart.records.problem import CUSTOM, Problem
from tests.support.witness.graphs import keeps_pins, partitions
from tests.support.witness.optimum import Found, found_at, optimum, value_of
from tests.support.witness.orders import Orders, awaited_actions, rounds_of_all
from tests.support.witness.placements import StageSlots, gpus_of, places
from tests.support.witness.pricing import Pricer, Setting

Action = tuple[int, str, int]

PIPELINES: tuple[tuple[StageSlots, int], ...] = (
    (((0,), (1,)), 1),
    (((0,), (1,)), 2),
    (((0,), (1,), (2,)), 1),
    (((0,), (1,), (0,), (1,)), 1),
    (((0,), (1,), (1,), (0,)), 1),
)
"""Stages on slots, and microbatches per step."""


def are_all_tried(slots: StageSlots, num_microbatches: int) -> bool:
    """Whether `optimum_of_orders` tries every order on such a pipeline."""
    return (slots, num_microbatches) in PIPELINES


@functools.lru_cache(maxsize=64)
def every_order(slots: StageSlots, num_microbatches: int) -> tuple[Orders, ...]:
    """All orders without a deadlock; each backward is whole or split."""
    ranks = 1 + max(slot for own in slots for slot in own)
    stages = [[s for s, own in enumerate(slots) if rank in own] for rank in range(ranks)]
    alone = [list(_orders_of_rank(own, num_microbatches)) for own in stages]
    found: list[Orders] = []
    for orders in itertools.product(*alone):
        # Microbatches are alike: the first one's first forward comes first on rank 0.
        whole = all(_own_results_first(order) for order in orders)
        if whole and orders[0][0][2] == 0 and rounds_of_all(orders, awaited_actions(orders, slots)):
            found.append(orders)
    return tuple(found)


def _orders_of_rank(stages: Sequence[int], num_microbatches: int) -> Iterator[tuple[Action, ...]]:
    """All orders of one rank's actions where each action follows its own stage's earlier ones."""
    pairs = list(itertools.product(stages, range(num_microbatches)))
    for shapes in itertools.product(("FB", "FIW"), repeat=len(pairs)):
        lanes = [
            tuple((stage, op, microbatch) for op in shape)
            for (stage, microbatch), shape in zip(pairs, shapes, strict=True)
        ]
        yield from _merged(lanes)


def _own_results_first(order: Sequence[Action]) -> bool:
    """Whether each result that a rank hands to itself is made ahead of its use."""
    at = {action: place for place, action in enumerate(order)}
    for (stage, op, microbatch), place in at.items():
        step = {"F": -1, "B": 1, "I": 1}.get(op, 0)
        for giver in "F" if op == "F" else "BI":
            if step and at.get((stage + step, giver, microbatch), -1) > place:
                return False
    return True


def _merged(lanes: Sequence[tuple[Action, ...]]) -> Iterator[tuple[Action, ...]]:
    if not any(lanes):
        yield ()
    for at, lane in enumerate(lanes):
        if lane:
            rest = [*lanes[:at], lane[1:], *lanes[at + 1 :]]
            yield from ((lane[0], *later) for later in _merged(rest))


def optimum_of_orders(problem: Problem) -> Found | None:
    """The best plan over all named schedules, and over every order on the pipelines above."""
    best = optimum(problem)
    pricer, gpus = Pricer(problem), gpus_of(problem.cluster)
    for slots, count in PIPELINES:
        ranks = 1 + max(slot for own in slots for slot in own)
        if (
            count != problem.num_microbatches
            or ranks > len(gpus.groups)
            or problem.demands.num_replicas not in (None, 1)
            or problem.demands.num_stages not in (None, len(slots))
            or problem.demands.stages_per_rank not in (None, len(slots) // ranks)
        ):
            continue
        for orders, cuts in itertools.product(
            every_order(slots, count), partitions(pricer.facts, len(slots))
        ):
            if not keeps_pins(pricer.facts, problem.demands, cuts):
                continue
            for place, stage_ranks in places(gpus, slots).items():
                beat = best.value if best else float("inf")
                setting = Setting(CUSTOM, slots, count, orders)
                price = pricer.price(setting, place, cuts, beat)
                if price is not None and price.fits and value_of(problem, price) < beat:
                    best = found_at(problem, setting, stage_ranks, cuts, price)
    return best
