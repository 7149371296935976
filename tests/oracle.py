"""Try everything: the slow and obviously right answer to a small problem."""

import itertools
from collections.abc import Iterator

from autopart.cluster import num_gpus
from autopart.graph import edges
from autopart.layouts import Layout, layouts, layouts_of, shapes
from autopart.pricing import fits, price
from autopart.problem import Problem
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
        for layout in every_layout(problem)
        for partition in partitions(problem, layout_stages(layout))
        if (time := step_time(problem, layout, partition)) is not None
    ]
    return min(times, default=None)


def every_layout(problem: Problem) -> Iterator[Layout]:
    """The layouts of every number of replicas that the problem allows."""
    if not problem.demands.replicas_per_stage:
        yield from itertools.chain(*(layouts(problem, *shape) for shape in shapes(problem)))
        return
    gpus, most = num_gpus(problem.cluster), problem.num_microbatches
    demanded = problem.demands.num_stages
    for k in [demanded] if demanded else range(1, min(gpus, len(problem.graph.layers)) + 1):
        for counts in itertools.product(range(1, min(gpus, most) + 1), repeat=k):
            if sum(counts) <= gpus:
                yield from layouts_of(problem, counts)


def layout_stages(layout: Layout) -> int:
    """The number of stages of a layout."""
    return len(layout.stage_ranks)
