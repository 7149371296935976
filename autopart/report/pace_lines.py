"""A run's pace beside its profile's, in lines."""

from autopart.records.pace import PaceComparison
from autopart.units import format_share, format_time


def step_error(error: float, pace: PaceComparison | None) -> str:
    """The error in the predicted step, with the error at the run's pace beside it."""
    if pace is None:
        return f"{error:+.1%}"
    if pace.predicted_step_time is None or pace.error is None:
        return f"{error:+.1%}, a change of the machine included"
    paced = format_time(pace.predicted_step_time)
    return f"{error:+.1%}; {paced} at the run's pace, {pace.error:+.1%}"


def pace_lines(found: PaceComparison | None) -> list[str]:
    """How far the pace moved between profile and run, or why that is unknown."""
    if found is None:
        return []
    if found.slowdown is None:
        return [f"pace: it cannot be compared, because {found.unknown}"]
    return [_moved(found)]


def _moved(found: PaceComparison) -> str:
    """How far the pace moved, and what else took the cores."""
    assert found.slowdown is not None
    cores = (
        f", and ranks had a core for {format_share(found.core_share)} of their actions' time"
        if found.core_share < 0.995
        else ""
    )
    change = found.slowdown - 1.0
    if abs(change) < 0.005:
        return f"pace: a fixed piece of work took as long as in the profile{cores}"
    side = "longer" if change > 0.0 else "less"
    return f"pace: a fixed piece of work took {format_share(abs(change))} {side} than in the profile{cores}"
