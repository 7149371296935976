"""Ways to break the executor on purpose, for tests of the check.

A fault is a function that replaces attributes of the executor on this rank. `with_fault` runs a function with it
and undoes the replacements.
"""

from collections.abc import Callable
from typing import Any

from torch import distributed

from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings

Replace = Callable[[Any, str, Any], None]
"""Replaces an attribute until the run is over."""
Fault = Callable[[Replace], None]
Faults = dict[str, Fault]
"""Faults by their names."""


def collector(faults: Faults) -> Callable[[Fault], Fault]:
    """A decorator that adds functions to `faults`. Each one's name, in words, is the fault's."""

    def collect(fault: Fault) -> Fault:
        faults[fault.__name__.strip("_").replace("_", " ")] = fault
        return fault

    return collect


def with_fault(
    fault: Fault | None,
    complaint: Callable[[int, Plan, RunSettings], str],
    rank: int,
    plan: Plan,
    settings: RunSettings,
) -> str:
    """The complaint of a run with a broken executor on this rank. None breaks nothing."""
    kept: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        kept.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    try:
        if fault is not None:
            fault(replace)
        return complaint(rank, plan, settings)
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


def on_rank_1() -> bool:
    """Whether this process is rank 1 of its pipeline."""
    return distributed.get_rank() == 1
