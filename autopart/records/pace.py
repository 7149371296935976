"""The machine's pace beside a measurement, and the pace of a run beside its profile's."""

from typing import Annotated

import msgspec

from autopart.records.readings import Share
from autopart.units import MOST_AMOUNT, MOST_SECONDS, PositiveCount, Seconds

Ratio = Annotated[float, msgspec.Meta(gt=0.0, le=MOST_AMOUNT)]


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that a fixed piece of work took before, between and after a measurement.

    On a CPU with one thread they are seconds on the core, as a profile's.
    """

    time: Annotated[float, msgspec.Meta(gt=0.0, le=MOST_SECONDS, description="seconds")]
    """Median seconds."""
    spread: Seconds
    """Interquartile range in seconds."""
    samples: PositiveCount
    """How often the work was timed."""
    threads: PositiveCount | None = None
    """Compute threads on a CPU; null on a GPU."""


class PaceComparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run's pace beside its profile's, and the prediction at the run's pace."""

    slowdown: Ratio | None
    """Seconds of the fixed work in the run over those in the profile, mean over ranks; null where unknown."""
    core_share: Share
    """Share of their actions' time in which ranks had a core; 1 where it is not known."""
    predicted_step_time: Seconds | None
    """Predicted step seconds at the run's pace and share of cores; null where unknown, or where ranks ran alone."""
    error: float | None
    """This step divided by the measured one, minus 1."""
    unknown: str = ""
    """Why the pace cannot be compared; empty where it can."""
