"""Orders that no generator makes, for tests that must hold for any valid one."""

from collections.abc import Sequence

from hypothesis import strategies as st

from autopart.schedule import Action, Schedule, predecessors, rank_of


@st.composite
def valid_orders(
    draw: st.DrawFn, stage_ranks: Sequence[Sequence[int]], num_microbatches: int
) -> Schedule:
    """At each point some rank runs one of the actions that have become possible."""
    num_stages = len(stage_ranks)
    waiting = {
        Action(stage, op, m)
        for stage in range(num_stages)
        for op in ("F", "B")
        for m in range(num_microbatches)
    }
    orders: list[list[Action]] = [[] for _ in range(1 + max(map(max, stage_ranks)))]
    while waiting:
        ready = sorted(a for a in waiting if not waiting & set(predecessors(a, num_stages)))
        action = draw(st.sampled_from(ready))
        waiting.remove(action)
        orders[rank_of(stage_ranks[action.stage], action.microbatch)].append(action)
    return tuple(map(tuple, orders))
