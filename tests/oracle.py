"""Try everything: the slow and obviously right answer to a small problem."""

import itertools
from collections.abc import Iterator

from autopart.graph import edges
from autopart.pricing import fits, price
from autopart.problem import Layout, Problem, layouts, shapes
from autopart.stage_load import Partition


def partitions(problem: Problem, num_stages: int) -> Iterator[Partition]:
    """Every division into `num_stages` non-empty stages whose edges all go forward."""
    pairs = edges(problem.graph)
    for homes in itertools.product(range(num_stages), repeat=len(problem.graph.layers)):
        if len(set(homes)) == num_stages and all(homes[u] <= homes[w] for u, w in pairs):
            yield tuple(
                tuple(at for at, home in enumerate(homes) if home == stage)
                for stage in range(num_stages)
            )


def step_time(problem: Problem, layout: Layout, partition: Partition) -> float | None:
    """Simulated seconds of a step; None where it does not fit."""
    decision = price(problem, layout, partition)
    return decision.prediction.step_time if fits(problem, decision) else None


def best_step_time(problem: Problem) -> float | None:
    """The smallest simulated step time of any plan; None where nothing fits."""
    times = [
        time
        for shape in shapes(problem)
        for layout in layouts(problem, *shape)
        for partition in partitions(problem, layout_stages(layout))
        if (time := step_time(problem, layout, partition)) is not None
    ]
    return min(times, default=None)


def layout_stages(layout: Layout) -> int:
    """The number of stages of a layout."""
    return len(layout.stage_ranks)
