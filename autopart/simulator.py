"""A schedule run on paper: when each action starts and ends, and what every rank then holds.

A rank runs its order one action after the other; an action starts when its rank is free and what
it needs has arrived. A send that overlaps compute travels on its own link, first in, first out; a
send that does not overlap keeps its sender busy after the action and its receiver busy before the
next one. After the last action come the gradient syncs, then each rank's optimizer step.
"""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.plan import Plan, StagePrediction, Sync, schedule_of, stage_ranks
from autopart.schedule import Action, Order, Schedule, StageRanks, predecessors, rank_of


class Slice(NamedTuple):
    """One action on one rank; `start` and `end` in seconds from the start of the step."""

    action: Action
    start: float
    end: float


class Timeline(NamedTuple):
    """What a step looks like on every rank."""

    slices: tuple[tuple[Slice, ...], ...]
    """For each rank its actions in order; sends that do not overlap count to their action."""
    sync_end: tuple[float, ...]
    """When each rank's gradient syncs end (its last action, where it has none)."""
    rank_end: tuple[float, ...]
    """When each rank has made its optimizer step; 0 for an idle rank."""
    makespan: float
    bubble: float
    """Idle share of rank-seconds over the ranks in use: neither compute, sync, nor update."""
    in_flight: tuple[int, ...]
    """For each rank, the most microbatches past their F and before their B."""


def simulate_plan(plan: Plan) -> Timeline:
    """Run the plan's orders on paper with the stage times that the plan carries."""
    return simulate(
        schedule_of(plan),
        stage_ranks(plan),
        plan.prediction.stages,
        plan.prediction.syncs,
        action_overhead=plan.cluster.action_overhead,
        sends_overlap=plan.cluster.sends_overlap,
    )


def simulate(
    schedule: Schedule,
    ranks: StageRanks,
    stages: Sequence[StagePrediction],
    syncs: Sequence[Sync],
    *,
    action_overhead: float,
    sends_overlap: bool,
) -> Timeline:
    """Run `schedule` on paper; raises ScheduleError, naming every blocked rank, on a deadlock."""
    run = _Run(schedule, ranks, stages, action_overhead, sends_overlap)
    slices = run.to_the_end()
    return _timeline(slices, ranks, stages, syncs)
