"""A search in phases: cheap choices first, each phase with its part of the time.

Each phase starts from the best decision so far. Where a phase runs out of time, the search keeps
everything that the phase has found.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from autopart.records.problem import CLASSIC, Problem
from autopart.search.incumbent import Incumbent, Outcome
from autopart.stopping.time_limit import OutOfTime, deadline_in, limited, time_left

SHARE_OF_LOOK = 0.1
"""Part of the time for a first look, which bounds some plans."""

SHARE_OF_START = 0.25
"""Part of the time in which fewer choices are searched."""


class Phase(NamedTuple):
    """One phase of a search."""

    share: float
    """The part of the time that it may take, among the time that is left."""
    run: Callable[[float], None]
    """Searches until a deadline."""


class PhasedSearch(Protocol):
    """A search that can stop behind each phase, and within."""

    @property
    def best(self) -> Incumbent:
        """The best decision so far."""
        ...

    @property
    def quick_bound(self) -> float:
        """Seconds that no decision can beat, at a glance; infinite where none exists."""
        ...

    @property
    def promise(self) -> float:
        """Seconds that its best decision may take, as far as a first look tells.

        The search with the fewest comes first where none has a decision yet.
        """
        ...

    @property
    def phases(self) -> list[Phase]:
        """The phases in their order; problems with the same demands have equally many."""
        ...

    @property
    def progress(self) -> str:
        """The part of the space that was searched, in words."""
        ...

    def outcome(self) -> Outcome:
        """The best decision and the lower bound, from everything that is done so far."""
        ...


def run_phases(search: PhasedSearch, deadline: float) -> None:
    """Run all phases of a search until a deadline, a reading of `time.perf_counter()`."""
    for phase in search.phases:
        run_phase(phase, phase.share, deadline)


def run_phase(phase: Phase, share: float, deadline: float) -> None:
    """Run one phase in a share of the time that is left until a deadline."""
    until = deadline_in(share * time_left(deadline))
    with limited(until):
        try:
            phase.run(until)
        except OutOfTime:
            return


def fewer_policies(problem: Problem) -> Problem | None:
    """`with_fewer_choices` where only the activation policies become fewer; else None."""
    fewer = with_fewer_choices(problem)
    if fewer is None or fewer.demands.replicas_per_stage != problem.demands.replicas_per_stage:
        return None
    return fewer if fewer.demands.schedules == problem.demands.schedules else None


def with_fewer_choices(problem: Problem) -> Problem | None:
    """A smaller problem, faster to solve. Each of its plans also solves `problem`.

    Equal replicas come before uneven ones, and GPipe and 1F1B before other schedules. No
    recomputation and offload come before the planner's choice of them. None where the choices
    cannot be reduced.
    """
    demands = problem.demands
    classic = tuple(name for name in demands.schedules if name in CLASSIC)
    free = ("recompute", "offload", "offload_optimizer")
    never = {field: "never" for field in free if getattr(demands, field) == "auto"}
    if demands.replicas_per_stage:
        fewer = msgspec.structs.replace(demands, replicas_per_stage=False)
    elif classic and len(classic) < len(demands.schedules):
        fewer = msgspec.structs.replace(demands, schedules=classic)
    elif never:
        fewer = msgspec.structs.replace(demands, **never)
    else:
        return None
    return msgspec.structs.replace(problem, demands=fewer)
