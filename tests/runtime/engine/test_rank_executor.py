"""The marks in a step, by a clock that only the test advances."""

# pyright: reportPrivateUsage=false

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from autopart.runtime.engine.group_part import GroupPart
from autopart.runtime.engine.rank_executor import RankPart, StepExecutor
from autopart.runtime.measuring.step_trace import Marks
from autopart.runtime.measuring.watcher import Unwatched
from autopart.runtime.update.gradient_sum import GradientSum


class Clock:
    """A clock that stands still between its changes."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        """The time now."""
        return self.now

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start

    def wait(self) -> None:
        """All work is done at once."""


class Shards:
    """Shards whose sums over the tensor group take 5 seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take the time only."""
        self._clock.now += 5.0


class Executor(StepExecutor):
    """One that has no actions, and takes 1 second for them."""

    @property
    def microbatches(self) -> tuple[int, ...]:
        """None."""
        return ()

    def _run(self, microbatches: object, loss_scale: float, marks: Marks) -> None:
        self._clock.now += 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("in_group", "expected"), [(True, 5.0), (False, 0.0)])
def test_sums_over_a_tensor_group_are_no_part_of_the_syncs(*, in_group: bool, expected: float):
    clock = Clock()
    part = RankPart(
        programs={},
        hosts={},
        owned=(),
        sums=GradientSum((), {}, 0),
        num_microbatches=1,
        device=torch.device("cpu"),
        watcher=Unwatched(),
        group=GroupPart(Shards(clock) if in_group else None),  # type: ignore[arg-type]
    )
    executor = Executor(part)
    executor._clock = clock  # type: ignore[assignment]
    executor.step({})
    trace = executor.trace()
    assert (trace.end, trace.sync_time, trace.group_time) == (1.0, 0.0, expected)
