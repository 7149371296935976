"""Closing: every partition that bounds leave open below a value is simulated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from autopart.search.incumbent import Incumbent


class Raised(NamedTuple):
    """A lower bound that was raised, and the effort."""

    proven: float
    """Seconds up to which nothing is better."""
    actions: int
    """Actions simulated."""
    simulated: int | None
    """Partitions that were simulated below `proven`; None where they were not counted."""


class Closed(NamedTuple):
    """The effort that closed a layout, or several, at a value."""

    simulated: int
    """Partitions."""
    actions: int


def raise_bound(
    best: Incumbent,
    bound: float,
    shares: Sequence[float],
    close: Callable[[float, int], Closed | None],
    actions: int,
) -> Raised:
    """Raise a lower bound towards the best value, by closing values between them.

    `shares` say where these values lie. `close` simulates the partitions below a value with at
    most so many actions.
    """
    proven, spent, simulated = bound, 0, 0
    for share in shares if bound < best.value < float("inf") else ():
        # Step 1: aim between the bound and the best value so far.
        aim = bound + share * (best.value - bound)
        # Step 2: simulate everything that may lie below the aim.
        closed = close(aim, actions - spent)
        if closed is None:
            break
        # Step 3: nothing else lies below it.
        spent += closed.actions
        proven = min(aim, best.value)
        simulated = closed.simulated if proven == aim else None
    return Raised(proven, spent, simulated)
