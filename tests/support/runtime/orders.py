"""Orders that no schedule makes, for tests that must pass for any valid order."""

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from autopart.bounds.any_order_partition import OrderProblem
from autopart.schedules.actions import Action, Schedule, rank_of
from autopart.simulator.costs import StageTimes
from autopart.solvers.orders.optimizer import optimize_orders

Ranks = Sequence[Sequence[int]]


@st.composite
def valid_orders(
    draw: st.DrawFn, stage_ranks: Ranks, num_microbatches: int, *, split_backward: bool = False
) -> Schedule:
    """Random valid orders: at each point some rank runs one possible action.

    With `split_backward`, each backward is randomly whole or split.
    """
    split = {
        (stage, m)
        for stage in range(len(stage_ranks))
        for m in range(num_microbatches)
        if split_backward and draw(st.booleans())
    }
    return _orders(stage_ranks, num_microbatches, split, lambda ready: draw(st.sampled_from(ready)))


def backward_first(
    stage_ranks: Ranks, num_microbatches: int, *, split_backward: bool = False
) -> Schedule:
    """Fixed orders for any placement.

    Backwards run as soon as they can, then forwards on late stages first, weight-gradient halves
    last.
    """
    every = {(s, m) for s in range(len(stage_ranks)) for m in range(num_microbatches)}

    def choose(ready: list[Action]) -> Action:
        return min(ready, key=lambda a: ("BIFW".index(a.op), a.microbatch, -a.stage))

    return _orders(stage_ranks, num_microbatches, every if split_backward else set(), choose)


def planned_orders(stage_ranks: Ranks, num_microbatches: int) -> Schedule:
    """Orders from the planner's search, for uneven stages with sends and optional split
    backwards."""
    last = len(stage_ranks) - 1
    task = OrderProblem(
        stages=[
            StageTimes(1.0 + 0.3 * (s % 3), 2.0, 0.3 * (s < last), 0.3 * (s > 0), 0.0, 1.0)
            for s in range(last + 1)
        ],
        stage_ranks=tuple(map(tuple, stage_ranks)),
        num_microbatches=num_microbatches,
        split=True,
        stash_bytes=(1,) * (last + 1),
    )
    return optimize_orders(task, actions=20_000).schedule


def _orders(
    stage_ranks: Ranks,
    num_microbatches: int,
    split: set[tuple[int, int]],
    choose: Callable[[list[Action]], Action],
) -> Schedule:
    num_stages = len(stage_ranks)
    waiting = {
        Action(stage, op, m)
        for stage in range(num_stages)
        for m in range(num_microbatches)
        for op in ("FIW" if (stage, m) in split else "FB")
    }
    orders: list[list[Action]] = [[] for _ in range(1 + max(map(max, stage_ranks)))]
    while waiting:
        ready = sorted(a for a in waiting if not waiting & set(_before(a, num_stages)))
        action = choose(ready)
        waiting.remove(action)
        orders[rank_of(stage_ranks[action.stage], action.microbatch)].append(action)
    return tuple(map(tuple, orders))


def _before(action: Action, num_stages: int) -> list[Action]:
    stage, op, m = action
    if op == "F":
        return [Action(stage - 1, "F", m)] if stage > 0 else []
    if op == "W":
        return [Action(stage, "I", m)]
    ahead = [Action(stage + 1, half, m) for half in ("B", "I")] if stage + 1 < num_stages else []
    return [Action(stage, "F", m), *ahead]
