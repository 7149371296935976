"""Lower bounds on the step time of shapes and layouts, whatever their schedules.

For GPipe and 1F1B the closed forms of autopart/bounds.py; for every other schedule, and for orders of a
plan's own, those of autopart/order_bounds that hold for every order. There each stage bounds its rank
as if the rank ran nothing else; where a rank has several stages, the work of all ranks shared out says
more, and so does the way of one microbatch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autopart.bounds import paths_below, shape_bounds, stage_bounds
from autopart.cost import fits_on_ranks
from autopart.cuts import Cuts
from autopart.layouts import Layout
from autopart.order_bounds import least_steps_on_ranks, stage_bounds_of_any_order
from autopart.problem import CLASSIC, CUSTOM, Problem
from autopart.schedules import KINDS
from autopart.stage_load import Number
from autopart.ways import can_treat, leaves_choice

Shape = tuple[int, int]
"""Ranks of a pipeline, and replicas of it."""


class LayoutBounds(NamedTuple):
    """Seconds that no partition of a layout can beat."""

    stages: list[Number]
    """For each stage, of every [i, j] between two of N cuts, shape (N, N); infinite where that is no
    stage, breaks a pin, or does not fit into memory."""
    whole: float
    """Of every partition."""

    def paths_below(self, seconds: float) -> Iterator[tuple[int, ...]]:
        """Every path over the cuts that these bounds leave open below `seconds`."""
        return iter(()) if self.whole >= seconds else paths_below(self.stages, seconds)


def quick_bounds(problem: Problem, shapes: Sequence[Shape]) -> dict[Shape, float | None]:
    """Seconds that no plan of each shape can beat; None where its ranks are too few for the model."""
    quick = shape_bounds(problem, shapes)
    names = problem.demands.schedules
    if set(names) <= set(CLASSIC):
        return quick
    able = [shape for shape, bound in quick.items() if bound is not None]
    split = any(_splits(name) for name in names)
    least = least_steps_on_ranks(problem, able, split=split)
    return {shape: least.get(shape) for shape in quick}


def layout_bounds(problem: Problem, layout: Layout, cuts: Cuts) -> LayoutBounds:
    """The bounds of a layout, whatever its schedule."""
    if layout.schedule in CLASSIC:
        return LayoutBounds(stage_bounds(problem, layout, cuts), 0.0)
    split = _splits(layout.schedule)
    stages = stage_bounds_of_any_order(problem, layout, cuts, split=split)
    ranks = len({own[0] for own in layout.stage_ranks})
    shape = (ranks, len(layout.stage_ranks[0]))
    whole = least_steps_on_ranks(problem, [shape], split=split)[shape]
    return LayoutBounds(
        [
            np.where(_holds(problem, layout, cuts, stage), bound, np.inf)
            for stage, bound in enumerate(stages)
        ],
        whole,
    )


def proves(problem: Problem, layout: Layout) -> bool:
    """Whether the bounds of a layout are part of a proof. Where orders of a plan's own are allowed, theirs
    hold for the named schedules on the same placement too, but for those that recompute layers."""
    demands = problem.demands
    if CUSTOM not in demands.schedules or layout.schedule == CUSTOM:
        return True
    return leaves_choice(demands) and can_treat(layout.schedule)


def _splits(schedule: str) -> bool:
    return schedule == CUSTOM or KINDS[schedule].splits_backward


def _holds(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> Number:
    """Boolean, shape (N, N): whether [i, j] fits with what the schedule holds in flight."""
    return fits_on_ranks(cuts.loads, problem, layout, stage)
