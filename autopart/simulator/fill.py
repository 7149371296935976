"""Idle time filled with work that is no part of the schedule, such as a second-order optimizer's.

Source: Osawa et al., PipeFisher, MLSys 2023. No action changes its place. The work may stop and go on at any time,
so a rank fills its idle stretches from the first one on. Work that is left after the step makes the step longer.
"""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.simulator.idle import Idle


class Fill(NamedTuple):
    """The work of one rank in its idle time."""

    filled: tuple[tuple[float, float], ...]
    """Stretches of work, in seconds since the step began."""
    left: float
    """Seconds of work for which the rank has no idle time."""

    @property
    def time(self) -> float:
        """Seconds of work within idle time."""
        return sum(end - start for start, end in self.filled)


def fill_idle(idle: Sequence[Idle], seconds: float) -> Fill:
    """`seconds` of work in a rank's idle stretches, which are in order."""
    filled: list[tuple[float, float]] = []
    left = seconds
    for stretch in idle:
        end = min(stretch.end, stretch.start + left)
        if end <= stretch.start:
            break
        filled.append((stretch.start, end))
        # The whole rest is taken where it fits: a difference of floats would leave a rounding error.
        left = 0.0 if end < stretch.end else max(0.0, left - (end - stretch.start))
    return Fill(tuple(filled), left)
