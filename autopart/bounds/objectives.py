"""The objectives and their lower bounds: everything that search and certificate share.

    objective                       shapes             layouts                       open layouts
    the step, the period            of_shape           of_layout                     by shape
    the bottleneck                  bottleneck (2)     bottleneck (1), attained      by shape
    the step with uneven replicas   none               of_layout                     open_replicas

Search raises a lower bound with them (autopart/search/branch_and_bound.py). The certificate checks
it with the same ones (autopart/certificate/bound.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from autopart.bounds.any_cuts import class_bounds
from autopart.bounds.any_order_shapes import Shape
from autopart.bounds.bottleneck import shape_bottlenecks, stage_bottlenecks
from autopart.bounds.glance import shape_bounds
from autopart.bounds.of_layout import LayoutBounds, is_needed, layout_bounds
from autopart.bounds.open_replicas import MOST_COUNTS, least_step_of_any_cuts, open_counts
from autopart.bounds.rank_assignments import (
    Assigned,
    BoundLayout,
    assignments_of,
    fastest_assigned,
)
from autopart.bounds.rank_groups import Inside
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.cost.cuts import Cuts, list_all
from autopart.errors import PlanError
from autopart.records.layouts import Layout, layouts, layouts_of, shapes
from autopart.records.problem import Problem
from autopart.text import counted

TOLERANCE = 1e-9
"""Relative difference below which two times are equal that were added up in different orders."""


MayBeFaster = Callable[[Assigned, LayoutBounds, Cuts, float], bool]
"""Whether some partition on a layout may take less than so many seconds, by simulating them."""


class Objective(Protocol):
    """Lower bounds on the seconds that a problem minimises."""

    @property
    def attained(self) -> bool:
        """Whether the largest bound along a path is its partition's value."""
        ...

    def of_layout(self, problem: Problem, layout: Layout, cuts: Cuts, /) -> LayoutBounds:
        """Seconds that no partition on a layout can beat."""
        ...

    def open_layouts(
        self, problem: Problem, cuts: Cuts, value: float, may_be_faster: MayBeFaster, /
    ) -> Iterator[Layout]:
        """The layouts in which a plan may take less than `value` seconds.

        `may_be_faster` simulates a layout's open partitions, where its groups of ranks are apart.
        Raises PlanError where these layouts or their partitions are too many to list.
        """
        ...


@dataclass(frozen=True)
class ShapedObjective:
    """An objective whose layouts come in shapes, each shape with a bound."""

    attained: bool
    """Whether the largest bound along a path is its partition's value."""
    of_shapes: Callable[[Problem, Sequence[Shape]], dict[Shape, float | None]]
    """Seconds that no plan can beat, for each shape; None where its ranks cannot hold the model."""
    of_layout: BoundLayout
    """Seconds that no partition on a layout can beat."""

    def open_layouts(
        self, problem: Problem, cuts: Cuts, value: float, _: MayBeFaster
    ) -> Iterator[Layout]:
        """The layouts in all shapes whose bound is below `value`."""
        for (ranks, replicas), bound in self.of_shapes(problem, shapes(problem)).items():
            # Step 1: a shape whose bound reaches the value has no plan below it.
            if bound is None or bound >= value:
                continue
            # Step 2: its layouts are open, as long as paths over the cuts are all their partitions.
            for layout in layouts(problem, ranks, replicas):
                if not is_needed(problem, layout):
                    continue
                if list_all(cuts, len(layout.stage_ranks)):
                    yield from _open_assignments(problem, layout, self.of_layout, cuts, value)
                elif self._open_over_classes(problem, layout, value):
                    raise PlanError(
                        f"with {counted(len(layout.stage_ranks), 'stage')} and {counted(replicas, 'replica')} only less than "
                        f"{value} s is proven"
                    )

    def _open_over_classes(self, problem: Problem, layout: Layout, value: float) -> bool:
        """Whether a layout may have a partition below `value`, where its cuts are not listed."""
        found = class_bounds(*fastest_assigned(problem, layout), self.of_layout)
        return found is None or any(True for _ in found[0].paths_below(value))


class UnevenStep:
    """The simulated step, where each stage chooses its replicas."""

    attained = False

    def of_layout(self, problem: Problem, layout: Layout, cuts: Cuts) -> LayoutBounds:
        """The bounds for the step."""
        return layout_bounds(problem, layout, cuts)

    def open_layouts(
        self, problem: Problem, cuts: Cuts, value: float, may_be_faster: MayBeFaster
    ) -> Iterator[Layout]:
        """The layouts for all replicas that bounds over replicas leave open below `value`."""
        least = least_step_of_any_cuts(problem)
        if value <= least * (1 + TOLERANCE):
            return
        if not cuts.complete:
            raise PlanError(f"only {least} s is proven, not {value} s")
        counts = open_counts(ReplicaBounds(problem, cuts), value)
        if counts is None:
            raise PlanError(
                f"the bound {value} is not proven: more than {MOST_COUNTS} lists of replicas are open"
            )
        for own in counts:
            for layout in layouts_of(problem, own):
                is_open = open_apart(problem, layout, self.of_layout, cuts, value, may_be_faster)
                yield from _open_assignments(problem, layout, self.of_layout, cuts, value, is_open)


def open_apart(
    problem: Problem,
    layout: Layout,
    of_layout: BoundLayout,
    cuts: Cuts,
    value: float,
    may_be_faster: MayBeFaster,
) -> Callable[[Inside], bool]:
    """Whether a node in a layout's tree of assignments may have a plan below `value` seconds."""
    tree = assignments_of(problem, layout)

    def is_open(inside: Inside) -> bool:
        assigned = tree.apart(inside)
        return may_be_faster(assigned, of_layout(*assigned, cuts), cuts, value)

    return is_open


def _open_assignments(
    problem: Problem,
    layout: Layout,
    of_layout: BoundLayout,
    cuts: Cuts,
    value: float,
    is_open: Callable[[Inside], bool] | None = None,
) -> Sequence[Layout]:
    """The layout on each assignment of its ranks that is open below `value` seconds."""
    found = assignments_of(problem, layout).open_layouts(of_layout, cuts, value, is_open)
    if found is None:
        counts = [len(ranks) for ranks in layout.stage_ranks]
        raise PlanError(
            f"the bound {value} is not proven: too many assignments of ranks to stages of {counts} "
            "replicas are open"
        )
    return found


def bottleneck_bounds(problem: Problem, layout: Layout, cuts: Cuts) -> LayoutBounds:
    """The bottlenecks on a layout's stages as bounds for its partitions."""
    return LayoutBounds(stage_bottlenecks(problem, layout, cuts))


STEP = ShapedObjective(attained=False, of_shapes=shape_bounds, of_layout=layout_bounds)
"""The simulated step, where all stages have equally many replicas.

The period has the same functions: they read the problem's objective where its bounds are others."""

BOTTLENECK = ShapedObjective(
    attained=True, of_shapes=shape_bottlenecks, of_layout=bottleneck_bounds
)
"""The bottleneck: seconds for which a step keeps its busiest rank occupied."""

UNEVEN_STEP = UnevenStep()


def objective_of(problem: Problem) -> Objective:
    """The objective that a problem asks for."""
    if problem.objective == "bottleneck":
        return BOTTLENECK
    return UNEVEN_STEP if problem.demands.replicas_per_stage else STEP
