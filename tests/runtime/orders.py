"""Orders that no generator makes, for tests that must hold for any valid one."""

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from autopart.order_bounds import OrderProblem
from autopart.schedule import Action, Schedule, rank_of
from autopart.simulator import StageTimes
from autopart.solvers.orders import optimize_orders

Ranks = Sequence[Sequence[int]]


@st.composite
def valid_orders(
    draw: st.DrawFn, stage_ranks: Ranks, num_microbatches: int, *, halves: bool = False
) -> Schedule:
    """At each point some rank runs one of the actions that have become possible; with `halves`,
    each backward is whole or split."""
    split = {
        (stage, m)
        for stage in range(len(stage_ranks))
        for m in range(num_microbatches)
        if halves and draw(st.booleans())
    }
    return _orders(stage_ranks, num_microbatches, split, lambda ready: draw(st.sampled_from(ready)))


def backward_first(stage_ranks: Ranks, num_microbatches: int, *, halves: bool = False) -> Schedule:
    """The same order at each call, whatever the placement: backwards as soon as they can run, then
    forwards of the last stages, weights' halves at the end."""
    every = {(s, m) for s in range(len(stage_ranks)) for m in range(num_microbatches)}

    def choose(ready: list[Action]) -> Action:
        return min(ready, key=lambda a: ("BIFW".index(a.op), a.microbatch, -a.stage))

    return _orders(stage_ranks, num_microbatches, every if halves else set(), choose)


def planned_orders(stage_ranks: Ranks, num_microbatches: int) -> Schedule:
    """What the planner's search makes of uneven stages with sends, whose backwards may be split."""
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
