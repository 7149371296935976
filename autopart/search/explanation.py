"""Why a plan is as it is: what binds it, and what each change would be worth.

Every worth is exact for the plans found: the question is solved again with the change. Moves of one layer are
solved with every layer pinned.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.certificate.plan_problem import own_size
from autopart.errors import AutopartError
from autopart.records.plan import Plan
from autopart.records.plan_degrees import has_several_degrees
from autopart.records.problem import CUSTOM
from autopart.records.profile import Profile
from autopart.records.rank_group import samples_per_gpu
from autopart.search.options import SolveOptions
from autopart.search.options_of_plan import options_of
from autopart.search.plan_comparison import training_seconds
from autopart.search.planner import solve_with_options
from autopart.search.what_if import Change, Scenario, ScenarioAnswer, solved_again
from autopart.simulator.critical_path import PathPiece, critical_path
from autopart.simulator.idle import Cause, idle_pieces, shown_causes, sums_by_cause
from autopart.simulator.timeline import simulate_plan
from autopart.stopping.time_limit import deadline_in, time_left


class LayerMove(NamedTuple):
    """One layer on the stage before or behind its own."""

    layer: str
    """The layer."""
    stage: int
    """Its new stage."""
    plan: Plan
    """The plan with this move, and with the best policies."""


class Explanation(NamedTuple):
    """A plan, what binds it, and what changes are worth."""

    plan: Plan
    path: tuple[PathPiece, ...]
    """The critical path of the step."""
    idle: dict[Cause, float]
    """Idle rank-seconds by cause, over all ranks."""
    move: LayerMove | None
    """The best move of one layer; None where no layer can move."""
    outcomes: tuple[ScenarioAnswer, ...]
    """What changes would be worth, smallest effort first."""
    left_out: int
    """Changes that the time limit left out."""


def explain_plan(
    plan: Plan,
    profiles: Sequence[Profile],
    scenarios: Sequence[Scenario] = (),
    *,
    time_limit: float = 10.0,
) -> Explanation:
    """Explain a plan with the profiles that it was made from.

    `scenarios` replace the usual changes. Each search has an equal share of the time that is left. Raises
    AutopartError where a scenario cannot be made, and PlanError where the profiles are not the plan's.
    """
    until = deadline_in(time_limit)
    own_size(plan, profiles)
    cluster, options = plan.cluster, options_of(plan)
    asked = list(scenarios) or list(usual_scenarios(plan))
    timeline = simulate_plan(plan)
    idle = [sums_by_cause(pieces) for pieces in idle_pieces(timeline)]
    whole: dict[Cause, float] = {
        cause: sum(one[cause] for one in idle) for cause in shown_causes(timeline)
    }
    move = None if scenarios else _best_move(plan, profiles, time_left(until) / 2)
    outcomes: list[ScenarioAnswer] = []
    for at, scenario in enumerate(asked):
        left = time_left(until)
        if left <= 0:
            break
        limited = dataclasses.replace(options, time_limit=left / (len(asked) - at))
        try:
            outcomes.append(solved_again(scenario, profiles, cluster, limited))
        except AutopartError as error:
            if scenarios:
                raise
            # A usual change may contradict the plan's demands; nobody asked for it.
            outcomes.append(ScenarioAnswer(scenario, None, str(error)))
    return Explanation(
        plan, critical_path(timeline), whole, move, tuple(outcomes), len(asked) - len(outcomes)
    )


def usual_scenarios(plan: Plan) -> Iterator[Scenario]:
    """The changes that most users can make, smallest effort first."""
    cluster, demands = plan.cluster, plan.demands
    yield ()
    batch = plan.num_microbatches * plan.microbatch_size
    more = plan.microbatch_size * len(plan.stages[0].ranks)
    yield (Change("global-batch", str(batch + more)),)
    if demands.recompute == "never" and not has_several_degrees(plan):
        yield (Change("recompute", "auto"),)
    if not cluster.gpus:
        yield (Change("memory", "+1GiB"),)
    if cluster.gpus_per_node > 1:
        yield (Change("intra-bandwidth", "+10%"),)
    if cluster.num_nodes > 1:
        yield (Change("inter-bandwidth", "+10%"),)
    if not cluster.gpus:
        yield (Change("nodes" if cluster.num_nodes > 1 else "gpus-per-node", "+1"),)


def _best_move(plan: Plan, profiles: Sequence[Profile], seconds: float) -> LayerMove | None:
    """The move of one layer over a cut with the shortest step, in at most so many seconds."""
    if plan.schedule == CUSTOM or has_several_degrees(plan):
        return None
    until = deadline_in(seconds)
    options = _same_shape(plan)
    best: LayerMove | None = None
    moves = list(_moves(plan))
    for at, (layer, stage, stages) in enumerate(moves):
        if time_left(until) <= 0:
            break
        pins = {name: place for place, names in enumerate(stages) for name in names}
        limit = max(0.05, time_left(until) / (len(moves) - at))
        try:
            moved = solve_with_options(
                profiles, plan.cluster, dataclasses.replace(options, pins=pins, time_limit=limit)
            )
        except AutopartError:
            continue  # it does not fit, or a value would flow back
        if best is None or training_seconds(moved) < training_seconds(best.plan):
            best = LayerMove(layer, stage, moved)
    return best


def _same_shape(plan: Plan) -> SolveOptions:
    """The plan's options with its own schedule, stages, replicas and microbatch size."""
    ranks = {rank for stage in plan.stages for rank in stage.ranks}
    replicas = [len(stage.ranks) for stage in plan.stages]
    equal = len(set(replicas)) == 1
    return dataclasses.replace(
        options_of(plan),
        microbatch_sizes=(samples_per_gpu(plan.microbatch_size, plan.group),),
        schedule=plan.schedule,
        num_stages=len(plan.stages),
        num_replicas=replicas[0] if equal else None,
        stages_per_rank=sum(replicas) // len(ranks) if equal else None,
    )


def _moves(plan: Plan) -> Iterator[tuple[str, int, list[tuple[str, ...]]]]:
    """Each move of one layer over a cut: the layer, its new stage, and the stages' layers then."""
    stages = [stage.layers for stage in plan.stages]
    for left, right in itertools.pairwise(range(len(stages))):
        if len(stages[left]) > 1:
            there = [*stages]
            there[left], there[right] = stages[left][:-1], (stages[left][-1], *stages[right])
            yield stages[left][-1], right, there
        if len(stages[right]) > 1:
            there = [*stages]
            there[left], there[right] = (*stages[left], stages[right][0]), stages[right][1:]
            yield stages[right][0], left, there
