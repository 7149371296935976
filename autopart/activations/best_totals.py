"""Totals for all stages between two cuts under their best activation policies.

The best policies depend on the memory that is free beside a stage's state, so on its place in a layout. Among the
choices that fit, the rule (autopart/activations/chooser.py) takes the one with the fewest busy seconds.

Where nothing waits for the host, no other choice for the same stage makes any step faster. Extra seconds only
lengthen the stage's backward, and no action starts earlier where another takes longer. Waits lengthen the forward
too. Then one choice may have the shorter forward and another the shorter backward: the rule decides, and the
certificate says so.
"""

import functools

import numpy as np
import numpy.typing as npt

from autopart.activations.chooser import (
    StagePlace,
    beside_workspace,
    better_on_host,
    changes_policies,
    counts_first,
    growth_of,
    in_one_term,
    kept_bytes,
    place_of,
    shared_growth,
    shared_link,
)
from autopart.activations.chosen_totals import in_chosen_places, with_chosen_points
from autopart.activations.policies import (
    leaves_choice,
    most_freed,
    must_change,
    optimizer_places,
)
from autopart.activations.stage_frontiers import StageFrontiers
from autopart.activations.stage_layers import stage_layers
from autopart.activations.totals_keys import (
    ANYWHERE,
    FrontierKey,
    GraphEnds,
    TotalsKey,
    without_graph,
)
from autopart.cost.cuts import Cuts
from autopart.cost.memory import memory, total
from autopart.cost.memory_limits import Limits
from autopart.cost.stage_totals import Array, StageTotals
from autopart.records.layouts import Layout
from autopart.records.problem import CLASSIC, Demands, Problem

KEPT_ENTRIES = 20_000_000
"""Matrix entries that are kept for other layouts, with five matrices for each: some hundred megabytes."""


def with_best_policies(
    problem: Problem, layout: Layout, cuts: Cuts, stage: int
) -> StageTotals[Array]:
    """`cuts.totals` as stage `stage` in a layout, under the best policies there.

    Stages that may keep all their stash have their plain totals, and so have stages that fit under no policies. Where
    the stages of a rank choose together, no stage has best policies of its own. The first stage begins at the first
    cut, and the last one ends at the last cut: only these have best policies there.
    """
    if layout.schedule not in CLASSIC or not leaves_choice(problem.demands):
        return cuts.totals
    ends = GraphEnds(first=stage == 0, last=stage == len(layout.stage_ranks) - 1)
    return best_totals(cuts).best(problem, layout, stage, ends)


def least_totals(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageTotals[Array]:
    """`cuts.totals` as stage `stage` in a layout, with the fewest bytes under any policies.

    Their times mean nothing.
    """
    if layout.schedule not in CLASSIC:
        return cuts.totals
    place = place_of(problem, layout, stage)
    return least_totals_on_replicas(problem, cuts, place.replicas, place.limits)


def least_totals_on_replicas(
    problem: Problem, cuts: Cuts, replicas: int, limits: Limits
) -> StageTotals[Array]:
    """`least_totals` for stages with so many replicas. Only the host's limit counts, not the device's."""
    if not leaves_choice(problem.demands):
        return cuts.totals
    return best_totals(cuts).least(problem, replicas, limits)


class BestTotals:
    """Totals for the stages between some cuts, in each place that was asked for."""

    def __init__(self, cuts: Cuts) -> None:
        self.cuts = cuts
        self._totals: dict[TotalsKey, StageTotals[Array]] = {}
        self._frontiers: dict[FrontierKey, StageFrontiers] = {}
        self._freed: dict[Demands, tuple[Array, npt.NDArray[np.bool_]]] = {}

    def best(
        self, problem: Problem, layout: Layout, stage: int, ends: GraphEnds = ANYWHERE
    ) -> StageTotals[Array]:
        """Totals under each stage's best policies, with optimizer state in the better place.

        Stages that do not reach `ends` keep their plain totals.
        """
        place = place_of(problem, layout, stage)
        places = [
            self._best_in_place(problem, place, on_host, ends)
            for on_host in optimizer_places(problem.demands)
        ]
        if len(places) == 1:
            return places[0]
        key = TotalsKey(without_graph(problem), place, None, least=False, ends=ends)
        if key not in self._totals:
            self._keep(
                key, in_chosen_places(better_on_host(problem, layout, stage, *places), *places)
            )
        return self._totals[key]

    def of_shared_rank(
        self, problem: Problem, place: StagePlace, *, split: bool
    ) -> StageTotals[Array]:
        """Totals under the policies that fit each stage into its place, apart from its rank's other stages.

        Optimizer state lies in the first allowed place in which the stage fits.
        """
        key = TotalsKey((split, *without_graph(problem)), place, None, least=False)
        if key not in self._totals:
            places = [
                self._in_share(problem, place, on_host, split=split)
                for on_host in optimizer_places(problem.demands)
            ]
            totals = places[0]
            if len(places) > 1:
                lacking = kept_bytes(problem, place, totals) > place.limits.device_bytes
                totals = in_chosen_places(lacking, *places)
            self._keep(key, totals)
        return self._totals[key]

    def _in_share(
        self, problem: Problem, place: StagePlace, on_host: bool, *, split: bool
    ) -> StageTotals[Array]:
        """`of_shared_rank` with all optimizer state in one place."""
        totals, must = self._plain(on_host), self._freed_bytes(problem)[1]
        kept = kept_bytes(problem, place, totals)
        asked = self.cuts.nested & changes_policies(kept, must, place.limits)
        frontiers = self.of_shared_ranks(problem, place.speed, split=split)
        beside = in_one_term(kept, totals, place.limits.in_flight)
        return with_chosen_points(totals, asked, frontiers, beside, place.limits)

    def least(self, problem: Problem, replicas: int, limits: Limits) -> StageTotals[Array]:
        """Totals with the fewest bytes under any policies; `limits.device_bytes` has no effect."""
        # On a device without memory the rule takes the point with the fewest bytes. Speed changes no bytes.
        place = StagePlace(replicas, limits._replace(device_bytes=0), 1.0)
        places = [
            self._least_in_place(problem, place, on_host)
            for on_host in optimizer_places(problem.demands)
        ]
        if len(places) == 1:
            return places[0]
        (here, size), (there, size_there) = (
            (use.host <= (np.inf if limits.host_bytes is None else limits.host_bytes), total(use))
            for use in (memory(own, problem, replicas, limits.in_flight) for own in places)
        )
        return in_chosen_places(there & ((size_there < size) | ~here), *places)

    def _best_in_place(
        self, problem: Problem, place: StagePlace, on_host: bool, ends: GraphEnds
    ) -> StageTotals[Array]:
        key = TotalsKey(without_graph(problem), place, on_host, least=False, ends=ends)
        if key not in self._totals:
            totals = self._plain(on_host)
            kept = kept_bytes(problem, place, totals)
            freed, must = self._freed_bytes(problem)
            # A stage that does not fit with all possible stash freed fits under no policies.
            may_fit = kept - place.limits.in_flight * freed <= place.limits.device_bytes
            asked = self.cuts.nested & may_fit & changes_policies(kept, must, place.limits)
            if ends.first:
                asked[1:] = False
            if ends.last:
                asked[:, :-1] = False
            frontiers = self._frontiers_of(problem, place.speed, place)
            beside = beside_workspace(problem, place, totals)
            self._keep(key, with_chosen_points(totals, asked, frontiers, beside, place.limits))
        return self._totals[key]

    def _least_in_place(
        self, problem: Problem, place: StagePlace, on_host: bool
    ) -> StageTotals[Array]:
        key = TotalsKey(without_graph(problem), place, on_host, least=True)
        if key not in self._totals:
            totals, frontiers = self._plain(on_host), self._frontiers_of(problem, None, place)
            beside = beside_workspace(problem, place, totals)
            self._keep(
                key, with_chosen_points(totals, self.cuts.nested, frontiers, beside, place.limits)
            )
        return self._totals[key]

    def _plain(self, on_host: bool) -> StageTotals[Array]:
        """The totals without policies, with all optimizer state in one place."""
        zeros = self.cuts.totals.optimizer_on_host
        return (
            self.cuts.totals._replace(optimizer_on_host=zeros + 1) if on_host else self.cuts.totals
        )

    def of_shared_ranks(self, problem: Problem, speed: float, *, split: bool) -> StageFrontiers:
        """The frontiers on ranks with one speed whose stages choose together, with whole or split backwards."""
        link = shared_link(problem)
        growth = shared_growth(problem, split=split)
        key = FrontierKey(
            problem.demands,
            link,
            growth.hosted,
            speed if link else 1.0,
            split,
            growth.apart,
            first=False,
        )
        if key not in self._frontiers:
            layers = stage_layers(problem.graph, problem.demands, link, speed if link else 1.0)
            self._frontiers[key] = StageFrontiers(growth, layers, self.cuts.ahead)
        return self._frontiers[key]

    def _frontiers_of(
        self, problem: Problem, speed: float | None, place: StagePlace
    ) -> StageFrontiers:
        cluster, demands = problem.cluster, problem.demands
        first = counts_first(problem, place)
        hosted = cluster.host_memory_bytes is not None
        key = FrontierKey(
            demands, cluster.host_link, hosted, speed, split=False, apart=False, first=first
        )
        if key not in self._frontiers:
            layers = stage_layers(problem.graph, demands, cluster.host_link, speed or 1.0)
            growth = growth_of(problem, timed=speed is not None)._replace(first=first)
            self._frontiers[key] = StageFrontiers(growth, layers, self.cuts.ahead)
        return self._frontiers[key]

    def _freed_bytes(self, problem: Problem) -> tuple[Array, npt.NDArray[np.bool_]]:
        """For each stage the most bytes per microbatch that policies free, and whether it may not keep all."""
        demands, ahead = problem.demands, self.cuts.ahead
        if demands not in self._freed:
            freed = ahead @ np.array(most_freed(problem.graph, demands), dtype=float)
            bound = [must_change(layer, demands) for layer in problem.graph.layers]
            must = ahead @ np.array(bound, dtype=float)
            self._freed[demands] = (
                freed[None, :] - freed[:, None],
                must[None, :] > must[:, None],
            )
        return self._freed[demands]

    def _keep(self, key: TotalsKey, totals: StageTotals[Array]) -> None:
        """Keep totals, and drop all others where they are too many; frontiers stay."""
        self._totals[key] = totals
        if len(self._totals) * self.cuts.nested.size > KEPT_ENTRIES:
            self._totals = {key: totals}


@functools.lru_cache(maxsize=2)
def best_totals(cuts: Cuts) -> BestTotals:
    """The totals that belong to some cuts, kept as long as the cuts themselves (`all_cuts`)."""
    return BestTotals(cuts)
