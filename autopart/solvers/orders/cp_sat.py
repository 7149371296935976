"""Polish of orders by OR-tools' CP-SAT, if it is installed (`pip install autopart[orders]`).

Windows (cp_sat_model.py) move over the step, and grow where none of them helps: a large
neighbourhood search. The whole step is the last window. A window as large as the step also gives a
lower bound. Nothing proves it again, so it is CP-SAT's word.
"""

import importlib.util

from autopart.solvers.orders.action_numbers import Orders
from autopart.solvers.orders.cp_sat_model import CpSatModel, CpSatWindow
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.order_times import OrderTimes

FEW, MANY = 60, 400
"""Actions in the smallest windows, and in the largest."""

ACTIONS_PER_PLACE = 20_000
"""Effort for each action in a window, in simulated actions."""

TIGHT = 1e-9
"""A relative difference that counts as rounding."""


def is_installed() -> bool:
    """Whether OR-tools can be imported."""
    return importlib.util.find_spec("ortools") is not None


def polish(times: OrderTimes, start: Orders, bound: float, effort: Effort) -> Orders:
    """The best orders found from some orders, until no window helps or the effort is over."""
    times.take(*start)
    best, step = start, times.step
    size = FEW
    while step > bound * (1 + TIGHT):
        improved = False
        for window in windows(times, size):
            if effort.is_over:
                return best
            effort.spend(ACTIONS_PER_PLACE * window.size)
            found = CpSatModel(times, window).solve(bound, effort)
            if found is None:
                continue
            if times.take(*found) and times.fits and times.step < step * (1 - TIGHT):
                best, step, improved = found, times.step, True
                break
            times.take(*best)
        # Where this size helped it is tried again; else windows grow up to the largest.
        if not improved and size >= min(MANY, times.num_actions):
            return best
        size = size if improved else 2 * size
    return best


def bound_of(times: OrderTimes, start: Orders, bound: float, effort: Effort) -> float | None:
    """Seconds that no orders beat, as CP-SAT says, at least `bound`; None for too many actions.

    Nothing here proves it again. It may be shown, and no other bound may rest on it.
    """
    times.take(*start)
    if times.num_actions > MANY:
        return None
    whole = CpSatWindow(tuple((0, len(order)) for order in times.orders))
    effort.spend(ACTIONS_PER_PLACE * whole.size)
    return CpSatModel(times, whole, exact=False).least(bound, effort)


def windows(times: OrderTimes, size: int) -> list[CpSatWindow]:
    """Windows over the step with about `size` actions, each half over the one before."""
    heads = sorted(times.head[x] for order in times.orders for x in order)
    found: list[CpSatWindow] = []
    for first in range(0, max(1, len(heads) - size // 2), max(1, size // 2)):
        since = heads[first]
        until = heads[first + size] if first + size < len(heads) else float("inf")
        found.append(
            CpSatWindow(
                tuple(
                    (times.first_from(order, since), times.first_from(order, until))
                    for order in times.orders
                )
            )
        )
    return found
