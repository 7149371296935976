"""The demands on single layers that no partition keeps at once, whatever the memory.

A partition is a path over the cuts, from the first one to the last. It keeps all demands where each
of its stages is allowed in its place. The answer is a smallest conflict: without any one of
its demands, the others can be kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import numpy as np

from autopart.bounds.microbatch_path import Mask
from autopart.cost.cuts import Cuts, allowed
from autopart.records.cluster import num_gpus
from autopart.records.layouts import layouts, shapes
from autopart.records.problem import Demands, Pin, Problem
from autopart.stopping.time_limit import check_time
from autopart.text import counted

LayerDemand = Pin | tuple[str, tuple[str, ...]]
"""A pin, or a field of the demands with one of its groups."""


def conflicting_demands(problem: Problem, cuts: Cuts) -> list[LayerDemand]:
    """A smallest set of demands that no partition keeps at once; empty where one keeps all."""
    counts = _stage_counts(problem)

    def broken(demands: Sequence[LayerDemand]) -> bool:
        asked = with_layer_demands(problem, demands)
        return not any(_some_path(asked, cuts, count) for count in counts)

    return smallest_conflict(layer_demands(problem.demands), broken)


def smallest_conflict(
    demands: Sequence[LayerDemand], broken: Callable[[Sequence[LayerDemand]], bool]
) -> list[LayerDemand]:
    """A set of demands that is broken, and is not without any one of them; empty where all hold."""
    if not demands or not broken(demands):
        return []
    left = list(demands)
    for demand in demands:
        fewer = [other for other in left if other is not demand]
        if broken(fewer):
            left = fewer
    return left


def layer_demands(demands: Demands) -> list[LayerDemand]:
    """Every pin and every group."""
    fields = ("same_stage", "different_stage")
    groups = [(field, group) for field in fields for group in getattr(demands, field)]
    return [*demands.pins, *groups]


def with_layer_demands(problem: Problem, kept: Sequence[LayerDemand]) -> Problem:
    """The problem with only these pins and groups."""
    groups: dict[str, list[tuple[str, ...]]] = {"same_stage": [], "different_stage": []}
    for demand in kept:
        if not isinstance(demand, Pin):
            groups[demand[0]].append(demand[1])
    demands = msgspec.structs.replace(
        problem.demands,
        pins=tuple(demand for demand in kept if isinstance(demand, Pin)),
        **{field: tuple(own) for field, own in groups.items()},
    )
    return msgspec.structs.replace(problem, demands=demands)


def as_typed(demands: Iterable[LayerDemand]) -> str:
    """The demands as options of the command line."""
    return " and ".join(
        f"--pin {demand.layer}={demand.stage}"
        if isinstance(demand, Pin)
        else f"--{demand[0].replace('_', '-')} {','.join(demand[1])}"
        for demand in demands
    )


def stages_in_words(problem: Problem) -> str:
    """The numbers of stages that the problem allows."""
    counts = _stage_counts(problem)
    if len(counts) == 1:
        return counted(counts[0], "stage")
    return f"{counts[0]} to {counts[-1]} stages"


def _stage_counts(problem: Problem) -> list[int]:
    """Every number of stages that the problem allows, the fewest first."""
    return sorted(set(_counts(problem)))


def _counts(problem: Problem) -> Iterator[int]:
    demands, most = problem.demands, len(problem.graph.layers)
    if demands.replicas_per_stage:
        most = min(most, num_gpus(problem.cluster))
        yield from [demands.num_stages] if demands.num_stages else range(1, most + 1)
        return
    for shape in shapes(problem):
        check_time()
        for layout in layouts(problem, *shape):
            yield len(layout.stage_ranks)


def _some_path(problem: Problem, cuts: Cuts, num_stages: int) -> bool:
    """Whether some partition into so many stages keeps all pins and groups."""
    reached: Mask = np.zeros(len(cuts.nested), dtype=bool)
    reached[0] = True
    for stage in range(num_stages):
        check_time()
        may = allowed(cuts, problem.graph, problem.demands, stage)[reached]
        reached = np.logical_or.reduce(may, axis=0)
    return bool(reached[-1])
