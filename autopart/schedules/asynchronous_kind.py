"""The record of an asynchronous schedule, and which settings it can have.

`named.asynchronous` has the schedules.
"""

from collections.abc import Callable
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.text import counted


class Setting(NamedTuple):
    """The numbers that delays and copies depend on."""

    num_stages: int
    num_microbatches: int = 1
    """Microbatches per update."""
    num_pipelines: int = 1
    """Pipelines that train copies of the model on the same ranks (AvgPipe)."""
    clock_distance: int = 0
    """Waves that one pipeline may be ahead of another (D in HetPipe)."""


Count = Callable[[Setting, int], int]
"""A count for a setting and a stage."""


class Asynchronous(NamedTuple):
    """One asynchronous schedule: each stage's microbatches in flight, weight copies and delays."""

    name: str
    in_flight: Count
    """Microbatches past F and before B."""
    extra_copies: Count
    """Copies of the stage's weights beside the current ones."""
    forward_delay: Callable[[Setting, int], float]
    """Updates that the forward's weights are behind; a fraction is an average over microbatches."""
    backward_delay: Callable[[Setting, int], float]
    """Updates that the backward's weights are behind."""
    every_microbatch: bool
    """Whether each microbatch is an update of its own, regardless of the setting."""
    least_microbatches: Callable[[int], int]
    """The fewest microbatches per update, for a number of stages."""
    held_against: str
    """The text or code that the numbers were compared with; `MEMORY` where there was none."""
    source: str
    """The paper that the numbers are from."""
    predicts_with: tuple[str, ...] = ()
    """Optimizers whose state predicts weights; empty for schedules that predict none.

    The first is the default in a checked run. With prediction the delays are distances."""


MEMORY = "from memory"


def check_setting(kind: Asynchronous, setting: Setting) -> None:
    """Raise ScheduleError if an update has too few microbatches, or more than its only one."""
    least, n = kind.least_microbatches(setting.num_stages), setting.num_microbatches
    if n < least:
        raise ScheduleError(
            f"schedule '{kind.name}' with {counted(setting.num_stages, 'stage')} needs at least "
            f"{counted(least, 'microbatch')} to an update, and {n} were asked for"
        )
    if kind.every_microbatch and n != 1:
        raise ScheduleError(
            f"schedule '{kind.name}' updates after every microbatch, not after {n}; take 1"
        )


def weight_version(kind: Asynchronous, setting: Setting, stage: int, microbatch: int) -> int:
    """The number of updates in the weights that a stage computes a microbatch with.

    The schedule's two delays must be equal and whole.
    """
    delay = kind.backward_delay(setting, stage)
    assert delay == kind.forward_delay(setting, stage) and delay == int(delay)
    return max(0, microbatch // setting.num_microbatches - int(delay))
