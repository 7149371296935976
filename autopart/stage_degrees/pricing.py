"""The price of a decision whose stages have tensor degrees of their own.

A stage with degree t has the seconds, bytes, policies and syncs that it has where all stages have
degree t (autopart/pricing.py). Only its sends differ (autopart/stage_degrees/resharding.py). A tied
parameter has one degree: stages that have a copy must have equal degrees.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from autopart.activations.best_policies import best_policies_of_stage
from autopart.activations.policies import StagePolicies
from autopart.cost.cuts import stage_totals
from autopart.cost.stage_times import cut_links, traffic_times
from autopart.cost.stage_totals import StageTotals
from autopart.cost.sync_rules import RULES
from autopart.errors import PlanError
from autopart.pricing import Decision, predict, simulated
from autopart.records.cluster import Link
from autopart.records.layer_graph import LayerGraph, positions
from autopart.records.layouts import Layout, Partition
from autopart.records.prediction import StagePrediction, Sync
from autopart.stage_degrees.placement import GroupPlaces
from autopart.stage_degrees.problem import DegreesProblem
from autopart.stage_degrees.resharding import senders_and_receivers, traffic_between


class DegreesPricer:
    """Prices for one problem. The best policies of stages are kept."""

    def __init__(self, problem: DegreesProblem) -> None:
        self.problem = problem
        self._policies: dict[tuple[str, int, int, int, tuple[int, ...]], StagePolicies] = {}

    def price(self, places: GroupPlaces, schedule: str, partition: Partition) -> Decision:
        """Predict every stage with its best policies, and simulate the step. Raises as `predict`."""
        policies = [
            self._best(places, schedule, partition, stage) for stage in range(len(partition))
        ]
        stages, syncs = self.predict(places, schedule, partition, policies)
        layout = layout_on(self.problem, places, schedule)
        cluster = self.problem.of_gpus.cluster
        prediction = simulated(cluster, layout, stages, syncs, None)
        return Decision(layout, partition, prediction, tuple(policies), degrees=places.degrees)

    def predict(
        self,
        places: GroupPlaces,
        schedule: str,
        partition: Partition,
        policies: Sequence[StagePolicies],
    ) -> tuple[tuple[StagePrediction, ...], tuple[Sync, ...]]:
        """The prediction for each stage on its GPUs under its policies, and the gradient syncs in a step.

        Raises PlanError where stages with a copy of one tied parameter have different degrees.
        """
        problem = self.problem
        check_ties(problem.of_gpus.graph, partition, places.degrees)
        own_stages: dict[int, StagePrediction] = {}
        syncs: list[Sync] = []
        totals: dict[int, StageTotals[float]] = {}
        for degree in dict.fromkeys(places.degrees):
            alike, layout = problem.at(degree), _layout_at(problem, places, schedule, degree)
            stages, own_syncs = predict(alike, layout, partition, policies)
            here = [s for s, own in enumerate(places.degrees) if own == degree]
            all_totals = stage_totals(alike.graph, partition)
            own_stages |= {s: stages[s] for s in here}
            totals |= {s: all_totals[s] for s in here}
            syncs += _on_plan_ranks(own_syncs, partition, problem.of_gpus.graph, places, degree)
        sends = _send_times(problem, places, [totals[s] for s in range(len(partition))])
        predicted = [own_stages[s] for s in range(len(partition))]
        return (
            tuple(_with_sends(problem, predicted, sends, s) for s in range(len(partition))),
            _in_order(problem, syncs),
        )

    def _best(
        self, places: GroupPlaces, schedule: str, partition: Partition, stage: int
    ) -> StagePolicies:
        """A stage's best policies: other stages matter only by the number behind it."""
        degree, behind = places.degrees[stage], len(partition) - stage - 1
        key = schedule, len(places.stage_ranks[0]), degree, behind, partition[stage]
        if key not in self._policies:
            layout = _layout_at(self.problem, places, schedule, degree)
            alike = self.problem.at(degree)
            self._policies[key] = best_policies_of_stage(alike, layout, partition, stage)
        return self._policies[key]


def layout_on(problem: DegreesProblem, places: GroupPlaces, schedule: str) -> Layout:
    """The layout of tensor groups on GPUs, with the plan's ranks."""
    return Layout(
        schedule=schedule,
        stage_ranks=places.stage_ranks,
        num_microbatches=problem.of_gpus.num_microbatches,
    )


def check_ties(graph: LayerGraph, partition: Partition, degrees: Sequence[int]) -> None:
    """Raise PlanError where stages with a copy of one tied parameter have different degrees."""
    place = positions(graph)
    for tied in graph.tied:
        members = {place[name] for name in tied.layers}
        own = {s: degrees[s] for s, layers in enumerate(partition) if members.intersection(layers)}
        if len(set(own.values())) > 1:
            said = ", ".join(f"stage {s} has degree {t}" for s, t in own.items())
            raise PlanError(
                f"tied parameter '{tied.name}' must have one tensor degree on all its stages, but {said}"
            )


def _layout_at(problem: DegreesProblem, places: GroupPlaces, schedule: str, degree: int) -> Layout:
    """The layout as the problem for one degree sees it; other stages' ranks stand for any."""
    replicas = tuple(range(len(places.stage_ranks[0])))
    return Layout(
        schedule=schedule,
        stage_ranks=tuple(
            places.groups(stage) if own == degree else replicas
            for stage, own in enumerate(places.degrees)
        ),
        num_microbatches=problem.of_gpus.num_microbatches,
    )


def _on_plan_ranks(
    syncs: Sequence[Sync],
    partition: Partition,
    graph: LayerGraph,
    places: GroupPlaces,
    degree: int,
) -> list[Sync]:
    """The syncs of stages with one degree, on the plan's ranks."""
    here = [s for s, own in enumerate(places.degrees) if own == degree]
    rank_of = {
        group: rank
        for stage in here
        for group, rank in zip(places.groups(stage), places.stage_ranks[stage], strict=True)
    }
    place = positions(graph)
    theirs = {f"stage {stage}" for stage in here}
    layers_here = {layer for stage in here for layer in partition[stage]}
    theirs |= {
        tied.name for tied in graph.tied if layers_here & {place[name] for name in tied.layers}
    }
    return [
        msgspec.structs.replace(sync, ranks=tuple(sorted(rank_of[group] for group in sync.ranks)))
        for sync in syncs
        if sync.what in theirs
    ]


def _in_order(problem: DegreesProblem, syncs: Sequence[Sync]) -> tuple[Sync, ...]:
    """The syncs in the order in which they follow their ranks' actions."""
    names = [tied.name for tied in problem.of_gpus.graph.tied]
    tied = sorted((sync for sync in syncs if sync.what in names), key=lambda s: names.index(s.what))
    own = [sync for sync in syncs if sync.what not in names]
    own.sort(key=lambda sync: int(sync.what.removeprefix("stage ")))
    first = RULES[problem.of_gpus.training.sync].ties_first
    return (*tied, *own) if first else (*own, *tied)


def cut_link(problem: DegreesProblem, places: GroupPlaces, cut: int) -> Link | None:
    """The slowest link that sends over the cut behind stage `cut` use."""
    ahead, behind = places.around(cut)
    pairs = [
        pair
        for first, other in zip(*places.first_gpus[cut : cut + 2], strict=True)
        for pair in senders_and_receivers(first, ahead, other, behind)
    ]
    senders, receivers = np.array(pairs).T
    return cut_links(problem.of_gpus.cluster, [senders, receivers])[0]


def _send_times(
    problem: DegreesProblem, places: GroupPlaces, totals: Sequence[StageTotals[Any]]
) -> list[tuple[float, float]]:
    """Seconds for activations and for gradients over each cut."""
    return [
        traffic_times(
            traffic_between(
                totals[cut].sent,
                totals[cut + 1].received,
                places.around(cut),
                split=problem.sequence_parallel,
            ),
            cut_link(problem, places, cut),
        )
        for cut in range(len(totals) - 1)
    ]


def _with_sends(
    problem: DegreesProblem,
    stages: Sequence[StagePrediction],
    sends: Sequence[tuple[float, float]],
    stage: int,
) -> StagePrediction:
    """A stage's prediction with the seconds of its own cuts."""
    cluster, own = problem.of_gpus.cluster, stages[stage]
    before = sends[stage - 1] if stage > 0 else (0.0, 0.0)
    after = sends[stage] if stage < len(sends) else (0.0, 0.0)
    busy = own.forward_time + own.backward_time + 2 * cluster.action_overhead
    if not cluster.sends_overlap:
        busy += sum(before) + sum(after)
    return msgspec.structs.replace(
        own, send_time=after[0], send_back_time=before[1], busy_time=busy
    )
