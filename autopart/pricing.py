"""What one complete decision costs: the stages' predictions and the simulated step."""

from typing import NamedTuple

from autopart.cost import predict
from autopart.plan import Prediction
from autopart.problem import Layout, Problem
from autopart.schedule import Schedule, make_schedule
from autopart.simulator import simulate
from autopart.stage_load import Partition


class Decision(NamedTuple):
    """A layout with its partition, and what follows from it."""

    layout: Layout
    partition: Partition
    schedule: Schedule
    prediction: Prediction


def price(problem: Problem, layout: Layout, partition: Partition) -> Decision:
    """Predict every stage and simulate the step."""
    stages, syncs = predict(problem, layout, partition)
    schedule = make_schedule(layout.schedule, layout.stage_ranks, problem.num_microbatches)
    timeline = simulate(
        schedule,
        layout.stage_ranks,
        stages,
        syncs,
        action_overhead=problem.cluster.action_overhead,
        sends_overlap=problem.cluster.sends_overlap,
    )
    prediction = Prediction(
        step_time=timeline.makespan, bubble=timeline.bubble, stages=stages, syncs=syncs
    )
    return Decision(layout, partition, schedule, prediction)


def fits(problem: Problem, decision: Decision) -> bool:
    """Whether every rank stays within the memory of a GPU."""
    return most_bytes(decision) <= problem.cluster.memory_bytes


def most_bytes(decision: Decision) -> int:
    """The peak bytes of the fullest rank."""
    return max(stage.peak_bytes for stage in decision.prediction.stages)
