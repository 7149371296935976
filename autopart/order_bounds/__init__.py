"""Lower bounds on the step time that hold for every order of actions, whatever its schedule's name."""

from autopart.order_bounds.of_cuts import least_steps_on_ranks, stage_bounds_of_any_order
from autopart.order_bounds.of_partition import OrderProblem, least_step, stays

__all__ = [
    "OrderProblem",
    "least_step",
    "least_steps_on_ranks",
    "stage_bounds_of_any_order",
    "stays",
]
