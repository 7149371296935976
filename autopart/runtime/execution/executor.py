"""Runs one rank's part of a step in the plan's order."""

from collections.abc import Mapping

import torch

from autopart.runtime.execution.held import Held, Stages
from autopart.runtime.execution.messages import Program
from autopart.runtime.execution.program_loop import ProgramLoop
from autopart.runtime.execution.rank_executor import RankPart, StepExecutor
from autopart.runtime.execution.stage import Leaves
from autopart.runtime.execution.step_trace import Marks
from autopart.runtime.execution.transfers import BETWEEN_RANKS, Transfers
from autopart.schedule import Action


class Executor(StepExecutor):
    """One rank's stages and its program."""

    def __init__(
        self,
        part: RankPart,
        stages: Stages,
        program: Program,
        transfers: Transfers = BETWEEN_RANKS,
    ) -> None:
        super().__init__(part)
        self._stages = dict(stages)
        self._program = program
        self._transfers = transfers

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches that this rank was dealt."""
        return microbatches_of(self._program)

    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        held = Held(self._stages, microbatches, loss_scale, self._transfers, self.meter)
        ProgramLoop(held, marks, self._clock, self._part.watcher).run(self._program)
        return held.loss


def microbatches_of(program: Program) -> tuple[int, ...]:
    """The microbatches that a rank's program has actions of."""
    actions = [event for event in program if isinstance(event, Action)]
    return tuple(sorted({action.microbatch for action in actions}))
