"""Every order of a small pipeline, and random problems to order."""

import itertools
import math
import random
from collections.abc import Iterator
from functools import cache

from autopart.order_bounds import OrderProblem
from autopart.schedule import Action, Op, Order, Schedule, dealt
from autopart.simulator import StageTimes, SyncTime
from autopart.solvers.orders.evaluation import Clock, fits


def all_orders(task: OrderProblem, *, split: bool) -> Iterator[Schedule]:
    """Every schedule, but for those that only exchange microbatches that run on the same ranks."""
    num_ranks = 1 + max(rank for ranks in task.stage_ranks for rank in ranks)
    yield from itertools.product(*(_rank_orders(task, rank, split) for rank in range(num_ranks)))


def _rank_orders(task: OrderProblem, rank: int, split: bool) -> list[Order]:
    groups = math.lcm(*map(len, task.stage_ranks))
    dealt_here = {
        (s, g): [m for m in dealt(ranks, rank, task.num_microbatches) if m % groups == g]
        for s, ranks in enumerate(task.stage_ranks)
        for g in range(groups)
        if rank in ranks
    }
    kinds = tuple((s, g, op) for (s, g), mine in dealt_here.items() if mine for op in _ops(split))
    orders: list[Order] = []
    for word in _words(kinds, tuple(len(dealt_here[s, g]) for s, g, _ in kinds)):
        at = dict.fromkeys(kinds, 0)
        order: list[Action] = []
        for stage, group, op in word:
            kind = (stage, group, op)
            order.append(Action(stage, op, dealt_here[stage, group][at[kind]]))
            at[kind] += 1
        orders.append(tuple(order))
    return orders


def _ops(split: bool) -> tuple[Op, ...]:
    return ("F", "I", "W") if split else ("F", "B")


@cache
def _words(kinds, left) -> list[tuple]:
    """Every sequence in which the n-th F of a stage comes before its n-th B (or I, and then W), built
    from the end: what is last has no follower that is not placed yet."""
    if not any(left):
        return [()]
    found = []
    for place, kind in enumerate(kinds):
        followed = place + 1 < len(kinds) and kinds[place + 1][:2] == kind[:2]
        if not left[place] or (followed and left[place + 1] >= left[place]):
            continue
        fewer = (*left[:place], left[place] - 1, *left[place + 1 :])
        found += [(*word, kind) for word in _words(kinds, fewer)]
    return found


def best_step(task: OrderProblem, *, split: bool) -> float | None:
    """The fastest of all orders that fit; None where none does."""
    clock = Clock(task)
    steps = [clock.step_time(order) for order in all_orders(task, split=split) if fits(task, order)]
    return min((step for step in steps if step is not None), default=None)


def random_task(
    rng: random.Random,
    num_stages: int,
    num_microbatches: int,
    *,
    split: bool,
    room: bool,
    stage_ranks=None,
) -> OrderProblem:
    """Stages with random times and sends; with `room`, memory that binds often."""
    scale = rng.choice([0.0, 0.2, 1.0])
    times = [_random_stage(rng, scale) for _ in range(num_stages)]
    ranks = stage_ranks or tuple((s,) for s in range(num_stages))
    names = sorted({rank for own in ranks for rank in own})
    syncs = [SyncTime(tuple(names[::2]), rng.uniform(0, 2))] if rng.random() < 0.3 else []
    stash = tuple(rng.randrange(1, 9) for _ in range(num_stages))
    least = {r: sum(stash[s] for s, own in enumerate(ranks) if r in own) for r in names}
    rooms = tuple(least[r] + rng.randrange(1 + least[r] * num_microbatches) for r in names)
    return OrderProblem(
        stages=times,
        stage_ranks=ranks,
        num_microbatches=num_microbatches,
        syncs=syncs,
        action_overhead=rng.choice([0.0, 0.1]),
        sends_overlap=rng.random() < 0.7,
        split=split,
        stash_bytes=stash,
        room_bytes=rooms if room else None,
    )


def _random_stage(rng: random.Random, scale: float) -> StageTimes:
    forward, gradient, weights = (rng.choice([1.0, rng.uniform(0.1, 3)]) for _ in range(3))
    return StageTimes(
        forward_time=forward,
        backward_time=gradient + weights,
        weight_grad_time=weights,
        send_time=scale * rng.choice([1.0, rng.uniform(0, 2)]),
        send_back_time=scale * rng.choice([1.0, rng.uniform(0, 2)]),
        update_time=rng.choice([0.0, rng.uniform(0, 1)]),
        split_time=0.125 * weights,
    )


PLACEMENTS = {
    "two ranks": ((0,), (1,)),
    "three ranks": ((0,), (1,), (2,)),
    "replicas first": ((0, 1), (2,)),
    "replicas last": ((0,), (1, 2)),
    "there and back": ((0,), (1,), (0,)),
    "loop": ((0,), (1,), (0,), (1,)),
    "V": ((0,), (1,), (1,), (0,)),
}


def small_task(rng: random.Random) -> OrderProblem:
    """A problem whose every order can be tried."""
    split = rng.random() < 0.4
    ranks = PLACEMENTS[rng.choice(list(PLACEMENTS))]
    k = len(ranks)
    most = (
        {2: 2 if max(map(len, ranks)) > 1 else 3, 3: 2, 4: 1}[k] if split else {2: 4, 3: 3, 4: 1}[k]
    )
    if ranks == PLACEMENTS["there and back"]:
        most = 1 if split else 2
    if max(map(len, ranks)) > 1:
        most = min(most, 3)
    least = min(2, most)
    m = rng.randint(least, most)
    return random_task(rng, k, m, split=split, room=rng.random() < 0.5, stage_ranks=ranks)
