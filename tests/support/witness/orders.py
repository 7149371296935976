"""Orders: which rank runs which action when. GPipe and both kinds of 1F1B are written down anew.

All other named schedules are definitions of their own, so their orders come from the catalogue.
"""

import functools
from collections.abc import Mapping, Sequence

from autopart.schedules.catalogue import make_schedule

Orders = Sequence[Sequence[tuple[int, str, int]]]
"""For each rank its actions: stage, op, microbatch."""

At = tuple[int, int]
"""An action as its rank and its place in the rank's order."""


@functools.lru_cache(maxsize=4096)
def orders_of(
    schedule: str, stage_ranks: tuple[tuple[int, ...], ...], num_microbatches: int
) -> Orders:
    """The orders that a name gives."""
    if schedule not in ("gpipe", "1f1b", "eager-1f1b"):
        return make_schedule(schedule, stage_ranks, num_microbatches)
    orders: list[list[tuple[int, str, int]]] = [
        [] for _ in range(1 + max(rank for ranks in stage_ranks for rank in ranks))
    ]
    for stage, ranks in enumerate(stage_ranks):
        for turn, rank in enumerate(ranks):
            mine = list(range(turn, num_microbatches, len(ranks)))
            ahead = min(in_flight(schedule, stage_ranks, stage, num_microbatches), len(mine))
            order = [(stage, "F", own) for own in mine[:ahead]]
            for done, own in enumerate(mine):
                order.append((stage, "B", own))
                order += [(stage, "F", own) for own in mine[ahead + done : ahead + done + 1]]
            orders[rank] = order
    return orders


def in_flight(
    schedule: str, stage_ranks: Sequence[Sequence[int]], stage: int, num_microbatches: int
) -> int:
    """Forwards ahead of the first backward on the stage's first rank; they are its most in flight."""
    replicas = len(stage_ranks[stage])
    own = -(-num_microbatches // replicas)
    if schedule == "gpipe":
        return own
    behind = sum(len(ranks) for ranks in stage_ranks[stage + 1 :])
    warmup = -(-behind // replicas) + 1
    return min(own, warmup if schedule == "1f1b" else 2 * warmup - 1)


def awaited_actions(orders: Orders, stage_ranks: Sequence[Sequence[int]]) -> dict[At, At]:
    """For each action that needs another rank's result, the action that makes it."""
    place = {action: (r, at) for r, order in enumerate(orders) for at, action in enumerate(order)}
    found: dict[At, At] = {}
    for (stage, op, microbatch), (rank, at) in place.items():
        if op == "F":
            giver = place.get((stage - 1, "F", microbatch))
        elif op == "W":
            giver = None
        else:
            giver = place.get((stage + 1, "B", microbatch)) or place.get(
                (stage + 1, "I", microbatch)
            )
        if giver is not None and giver[0] != rank:
            found[rank, at] = giver
    assert len(stage_ranks) == 1 + max(stage for stage, _, _ in place)
    return found


def round_of_actions(orders: Orders, needs: Mapping[At, At]) -> dict[At, int]:
    """The round in which each action runs, if each takes one round: 1 behind all that it follows."""
    found = rounds_of_all(orders, needs)
    assert found is not None, "the orders deadlock"
    return found


def rounds_of_all(orders: Orders, needs: Mapping[At, At]) -> dict[At, int] | None:
    """The same; None where ranks wait for each other."""
    found: dict[At, int] = {}
    at = [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                action = (rank, at[rank])
                giver = needs.get(action)
                if giver is not None and giver not in found:
                    break
                before = found.get((rank, at[rank] - 1), 0)
                found[action] = 1 + max(before, found[giver] if giver is not None else 0)
                at[rank] += 1
                moved = True
    return found if len(found) == sum(map(len, orders)) else None
