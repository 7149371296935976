"""The readings that a page shows. They are computed before, by the rooms whose figures they are."""

from typing import NamedTuple

from autopart.cost.crossings import Crossings
from autopart.fidelity.compare import Fidelity
from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.records.size import Sizing
from autopart.search.plans_beside import PlansBeside
from autopart.simulator.idle import Idle
from autopart.simulator.memory import MemoryCurve
from autopart.simulator.timeline import Timeline


class Measured(NamedTuple):
    """A run of the plan, and the plan's prediction beside it."""

    run: RunResult
    fidelity: Fidelity


class PageContents(NamedTuple):
    """Everything that a page shows."""

    plan: Plan
    file: str
    """The plan's file, as the user named it."""
    timeline: Timeline
    idle: tuple[tuple[Idle, ...], ...]
    """Each rank's idle time by cause."""
    curves: tuple[MemoryCurve, ...]
    """Each rank's bytes over time."""
    crossings: Crossings
    """What the nodes send to each other in a step."""
    beside: PlansBeside | None
    """Other plans; None where the profiles are not given."""
    measured: Measured | None
    """A run; None where none is given."""
    sizing: Sizing | None = None
    """How many GPUs the training needs; None where no such answer is given."""


MOST_ACTIONS = 400_000
"""Most actions that a page draws; with more, one rank per stage is drawn."""


def drawn_ranks(contents: PageContents) -> list[int]:
    """The ranks that the page draws: all in use, or one per stage where they have too many actions."""
    schedule = contents.timeline.actions.schedule
    used = [rank for rank, order in enumerate(schedule) if order]
    if sum(map(len, schedule)) <= MOST_ACTIONS:
        return used
    return sorted({min(stage.ranks) for stage in contents.plan.stages})
