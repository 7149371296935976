"""When a stage's parameter gradients are there: the whole step, or from its first backward on.

The executor frees gradients in its update, and a step's first backward makes them anew, layer by layer (`makes_gradients`).
So they are not there while forwards fill the memory. Under GPipe, and under 1F1B with few microbatches, all microbatches of
a rank are in flight before its first backward. Let n be their number, and G the stage's gradients. Its peak is the
largest of

    n stash + workspace                 in the last forward
    n stash + first                     in the first backward
    (n - 1) stash + workspace + G       behind it

with the messages of each. `first` is `first_backward_bytes` in the totals (autopart/cost/workspaces.py). With fewer in flight,
as many are there again behind the first backward: then all gradients count. On ranks with several stages, and in
other orders, all gradients of a stage count as soon as its first backward begins.
"""

from typing import Any, Protocol

from autopart.cost.stage_totals import StageTotals
from autopart.cost.syncs import Q_co, Trained, gradient_bytes
from autopart.records.problem import Problem
from autopart.records.training import Training, makes_gradients
from autopart.schedules.actions import microbatches_per_replica
from autopart.schedules.classic_rows import all_at_once, classic_rows
from autopart.schedules.in_flight import InFlight
from autopart.units import Q


class Gradients(Trained[Q_co], Protocol[Q_co]):
    """Parameters whose gradients may wait for a sum once per step."""

    @property
    def unscattered_grad_bytes(self) -> Q_co: ...


def rows_of(problem: Problem, replicas: int, in_flight: int) -> InFlight:
    """The places where a stage with so many replicas may peak under GPipe or 1F1B."""
    return (all_at_once if has_all_in_flight(problem, replicas, in_flight) else classic_rows)(
        in_flight
    )


def has_all_in_flight(problem: Problem, replicas: int, in_flight: int) -> bool:
    """Whether all microbatches of a rank are in flight before its first backward, under GPipe or 1F1B."""
    return in_flight > 0 and in_flight >= microbatches_per_replica(
        problem.num_microbatches, replicas
    )


def whole_gradients(parameters: Gradients[Q], training: Training) -> Q:
    """Gradient bytes on one rank, also of parts that wait for a sum once per step."""
    summed: Any = gradient_bytes(parameters, training)
    return summed + parameters.unscattered_grad_bytes


def lasting_gradients(parameters: Gradients[Q], training: Training) -> Q:
    """Gradient bytes that are there during the whole step."""
    whole = whole_gradients(parameters, training)
    return 0 * whole if makes_gradients(training) else whole


def made_gradients(parameters: Gradients[Q], training: Training) -> Q:
    """Gradient bytes that do not exist before a step's first backward; 0 where their room is there all the time."""
    whole = whole_gradients(parameters, training)
    return whole if makes_gradients(training) else 0 * whole


def first_backward(totals: StageTotals[Q], training: Training) -> Q:
    """Transient bytes in a stage's first backward, layer by layer with the gradients that it has made."""
    return totals.first_backward_bytes if makes_gradients(training) else totals.workspace_bytes
