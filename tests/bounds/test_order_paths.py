"""Paths through the orders of a named schedule, against the simulated step."""

import random

import numpy as np
import pytest

from autopart.bounds.order_paths import ActionSeconds, OrderGraph, OrderPaths
from autopart.records.layouts import Layout
from autopart.schedules.catalogue import KINDS, make_schedule
from tests.support.seeds import seeds

SCHEDULES = {
    "interleaved-1f1b": 2, "looped-bfs": 3, "zbv": 2, "zb-h1": 1, "v-half": 2, "dualpipev": 2, "interleaved-zb": 2
}  # fmt: skip


def played(layout: Layout, seconds: ActionSeconds) -> float:
    """The end of the last action, found by asking each action for the ends of those that it awaits."""
    ranks, last = layout.stage_ranks, len(layout.stage_ranks) - 1
    orders = make_schedule(layout.schedule, ranks, layout.num_microbatches)
    ended: dict[tuple[int, str, int], float] = {}
    clocks, at = [0.0] * len(orders), [0] * len(orders)
    lengths = {
        "F": seconds.forward,
        "B": seconds.gradient + seconds.weights,
        "I": seconds.gradient,
        "W": seconds.weights,
    }

    def awaited(stage: int, op: str, microbatch: int) -> float | None:
        """When the results are there; None where one is missing."""
        if op == "W":
            return 0.0
        if op == "F":
            return 0.0 if stage == 0 else ended.get((stage - 1, "F", microbatch))
        if stage == last:
            return 0.0
        ends = [ended.get((stage + 1, half, microbatch)) for half in "BI"]
        return next((end for end in ends if end is not None), None)

    while any(place < len(order) for place, order in zip(at, orders, strict=True)):
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                stage, op, microbatch = order[at[rank]]
                ready = awaited(stage, op, microbatch)
                if ready is None:
                    break
                clocks[rank] = max(clocks[rank], ready) + float(lengths[op][stage])
                ended[stage, op, microbatch] = clocks[rank]
                at[rank] += 1
    return max(clocks)


def lengths_of(paths: OrderPaths, seconds: ActionSeconds) -> np.ndarray:
    return (
        paths.forward @ seconds.forward
        + paths.gradient @ seconds.gradient
        + paths.weights @ seconds.weights
    )


def drawn(rng: random.Random) -> tuple[Layout, list[ActionSeconds]]:
    """A layout, and two lists of seconds for its stages."""
    name, each = rng.choice(sorted(SCHEDULES.items()))
    ranks = rng.randint(2, 4)
    placement = KINDS[name].placement(ranks, each)
    layout = Layout(
        schedule=name,
        stage_ranks=tuple((rank,) for rank in placement),
        num_microbatches=ranks * rng.randint(2, 3),
    )
    several = [
        ActionSeconds(*(np.array([rng.uniform(0, 3) for _ in placement]) for _ in range(3)))
        for _ in range(2)
    ]
    return layout, several


@pytest.mark.parametrize("seed", seeds(8, 60))
def test_no_path_is_longer_than_the_step_and_the_longest_is_the_step(seed: int):
    layout, (sought, other) = drawn(random.Random(seed))
    graph = OrderGraph(layout)
    step, elsewhere = played(layout, sought), played(layout, other)
    for share in (0.0, 0.3):
        paths = graph.longest(sought, share)
        assert lengths_of(paths, sought).max() <= step * (1 + 1e-9)
        # Paths hold for any seconds, not for those alone by which they were sought.
        assert lengths_of(paths, other).max() <= elsewhere * (1 + 1e-9)
    assert lengths_of(graph.longest(sought, 0.0), sought).max() == pytest.approx(step)


def test_a_path_counts_its_actions():
    layout, (sought, _) = drawn(random.Random(1))
    paths = OrderGraph(layout).longest(sought, 0.3)
    once = paths.forward.sum(axis=1) + np.maximum(paths.gradient, paths.weights).sum(axis=1)
    assert (paths.actions <= once + paths.weights.sum(axis=1)).all()
    assert (paths.actions >= paths.forward.sum(axis=1)).all()
    assert (paths.ends.sum(axis=1) >= 1).all()
