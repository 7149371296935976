"""All orders of a small pipeline, and random problems for the order search."""

import itertools
import math
import random
from collections.abc import Iterator
from functools import cache

from autopart.bounds.any_order_partition import OrderProblem
from autopart.schedules.actions import Action, Order, Schedule, dealt
from autopart.simulator.costs import StageTimes, SyncTime
from autopart.solvers.orders.evaluation import Clock, fits


def all_orders(task: OrderProblem, *, split: bool) -> Iterator[Schedule]:
    """Every schedule, up to exchanges of microbatches that run on the same ranks.

    With `split`, each microbatch's backward on each stage may be whole or split.
    """
    num_ranks = 1 + max(rank for ranks in task.stage_ranks for rank in ranks)
    yield from itertools.product(*(_rank_orders(task, rank, split) for rank in range(num_ranks)))


def _rank_orders(task: OrderProblem, rank: int, split: bool) -> list[Order]:
    """Every order of a rank; with `split`, each backward may be whole or split."""
    groups = math.lcm(*map(len, task.stage_ranks))
    own = {
        (s, g): [m for m in dealt(ranks, rank, task.num_microbatches) if m % groups == g]
        for s, ranks in enumerate(task.stage_ranks)
        for g in range(groups)
        if rank in ranks
    }
    own = {key: mine for key, mine in own.items() if mine}
    choices = [_split_subsets(mine) if split else [()] for mine in own.values()]
    return [
        order
        for chosen in itertools.product(*choices)
        for order in _orders_of(own, dict(zip(own, chosen, strict=True)))
    ]


def _split_subsets(microbatches: list[int]) -> list[tuple[int, ...]]:
    """Every choice of the microbatches whose backward is split."""
    sizes = range(len(microbatches) + 1)
    return [each for n in sizes for each in itertools.combinations(microbatches, n)]


def _orders_of(own, split) -> Iterator[Order]:
    """Every order of a rank's own microbatches by stage and group; those in `split` have I and W."""
    kinds, backs = [], []
    for (s, g), mine in own.items():
        kinds += [(s, g, "F"), (s, g, "B"), *([(s, g, "W")] if split[s, g] else [])]
        # The word's n-th B is the n-th microbatch's; W follows the I with the same microbatch.
        before = tuple(mine.index(m) for m in split[s, g])
        backs += [(), (), *([before] if before else [])]
    counts = tuple(len(split[s, g]) if op == "W" else len(own[s, g]) for s, g, op in kinds)
    for word in _words(tuple(kinds), tuple(backs), counts):
        at = dict.fromkeys(kinds, 0)
        order: list[Action] = []
        for kind in word:
            stage, group, op = kind
            mine = split[stage, group] if op == "W" else own[stage, group]
            microbatch = mine[at[kind]]
            at[kind] += 1
            if op == "B" and microbatch in split[stage, group]:
                op = "I"
            order.append(Action(stage, op, microbatch))
        yield tuple(order)


@cache
def _words(kinds, backs, left) -> list[tuple]:
    """Every sequence where the n-th F of a stage comes before its n-th B, and W after its own I.

    `backs` has, for each W, the place of its I among the stage's B. Sequences are built from the end: the
    last action has no successor that is not yet placed.
    """
    if not any(left):
        return [()]
    found = []
    for place, (stage, group, op) in enumerate(kinds):
        if not left[place]:
            continue
        there = place + 1 < len(kinds) and kinds[place + 1][:2] == (stage, group)
        if op == "F" and left[place + 1] >= left[place]:
            continue
        # The B that would be placed is number left - 1: no W that is left may follow it.
        if op == "B" and there and (left[place] - 1) in backs[place + 1][: left[place + 1]]:
            continue
        fewer = (*left[:place], left[place] - 1, *left[place + 1 :])
        found += [(*word, kinds[place]) for word in _words(kinds, backs, fewer)]
    return found


def best_step(task: OrderProblem, *, split: bool) -> float | None:
    """The shortest step over all orders that fit; None if none fits."""
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
    """Stages with random times and sends; with `room`, often tight memory."""
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
    """A problem that is small enough to try all orders."""
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
