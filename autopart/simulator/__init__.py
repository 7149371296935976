"""A schedule run on paper: when each action starts and ends, and what every rank then holds.

A rank runs its order one action after the other; an action starts when its rank is free and what
it needs has arrived. A send that overlaps compute travels on its own link, first in, first out; a
send that does not overlap keeps its sender busy after the action and its receiver busy before the
next one; what the same rank needs next is there at once. After the last action come the gradient
syncs, then each rank's optimizer step.
"""

from autopart.simulator.costs import StageTimes, SyncTime
from autopart.simulator.program import Program, compile_schedule, step_times
from autopart.simulator.timeline import Slice, Timeline, simulate, simulate_plan

__all__ = [
    "Program",
    "Slice",
    "StageTimes",
    "SyncTime",
    "Timeline",
    "compile_schedule",
    "simulate",
    "simulate_plan",
    "step_times",
]
