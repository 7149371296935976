"""The objectives as a search sees them: a decision's value, proposals, and lower bounds."""

from typing import Protocol

from autopart.activations.policies import leaves_choice
from autopart.bounds.objectives import BOTTLENECK, STEP, ShapedObjective
from autopart.cost.cuts import MOST_CUTS, Cuts
from autopart.pricing import Decision, minimised, most_bytes
from autopart.records.layer_graph import is_chain
from autopart.records.layouts import Layout, replicas_alike
from autopart.records.problem import Problem
from autopart.solvers import chain_bisection, cuts_dp
from autopart.solvers.chain_of_layout import chain_of

Path = tuple[int, ...]
"""The cuts between a partition's stages, the first and the last cut among them."""


class SearchedObjective(Protocol):
    """Everything that branch and bound asks an objective."""

    @property
    def bounds(self) -> ShapedObjective:
        """Lower bounds on shapes and layouts."""
        ...

    def value(self, decision: Decision) -> float:
        """Seconds that the problem minimises."""
        ...

    def second(self, decision: Decision) -> float:
        """The quantity that decides between decisions with equal values; less is better."""
        ...

    def proposals(self, layout: Layout, cuts: Cuts) -> list[Path]:
        """Paths over the cuts that are likely to be good, the likeliest first.

        None where nothing fits.
        """
        ...


class ShortestStep:
    """The decision with the shortest simulated step; among equal steps the one with fewer bytes."""

    bounds = STEP

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def value(self, decision: Decision) -> float:
        """The step, or the period, in seconds."""
        return minimised(self.problem, decision.prediction, decision.layout.stage_ranks)

    def second(self, decision: Decision) -> float:
        """Bytes on the fullest rank."""
        return most_bytes(decision)

    def proposals(self, layout: Layout, cuts: Cuts) -> list[Path]:
        """The chain solver's paths.

        On a long chain, where its matrices take seconds, bisection's paths.
        """
        demands, cluster = self.problem.demands, self.problem.cluster
        pinned = demands.pins or demands.same_stage or demands.different_stage
        pinned = pinned or leaves_choice(demands)
        long = len(cuts.nested) > MOST_CUTS and is_chain(self.problem.graph)
        if not long or pinned or cluster.gpus or not replicas_alike(layout):
            return cuts_dp.solve(self.problem, layout, cuts)
        found = [
            chain_bisection.solve(*chain_of(self.problem, layout, cuts.totals, share))
            for share in cuts_dp.SEND_SHARES
        ]
        return [one.cuts for one in found if one is not None]


class ShortestPeriod(ShortestStep):
    """The decision with the shortest period; among equal periods the one with the shorter step."""

    def second(self, decision: Decision) -> float:
        """The step in seconds."""
        return decision.prediction.step_time


class SmallestBottleneck:
    """The decision with the smallest bottleneck.

    Among equal bottlenecks the one with the shorter step.
    """

    bounds = BOTTLENECK

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def value(self, decision: Decision) -> float:
        """The bottleneck in seconds."""
        return minimised(self.problem, decision.prediction, decision.layout.stage_ranks)

    def second(self, decision: Decision) -> float:
        """The step in seconds."""
        return decision.prediction.step_time

    def proposals(self, layout: Layout, cuts: Cuts) -> list[Path]:
        """The path whose largest stage is smallest."""
        stages = self.bounds.of_layout(self.problem, layout, cuts).stages
        found = cuts_dp.best_path(stages, cuts.nested)
        return [] if found is None else [found.path]


def searched_objective(problem: Problem) -> SearchedObjective:
    """A problem's objective, whether its stages may have uneven replicas or not."""
    if problem.objective == "bottleneck":
        return SmallestBottleneck(problem)
    return ShortestPeriod(problem) if problem.objective == "period" else ShortestStep(problem)
