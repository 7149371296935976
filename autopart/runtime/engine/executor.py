"""Runs one rank's part of a step, in the plan's order."""

from collections.abc import Mapping

import torch

from autopart.runtime.engine.buffers import Buffers, Stages
from autopart.runtime.engine.program_loop import ProgramLoop
from autopart.runtime.engine.rank_executor import RankPart, StepExecutor
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.transfers import BETWEEN_RANKS, Transfers
from autopart.runtime.measuring.step_trace import Marks
from autopart.schedules.actions import Action
from autopart.schedules.messages import Program


class Executor(StepExecutor):
    """Runs one rank's program on its stages."""

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
        """This rank's microbatches."""
        return microbatches_of(self._program)

    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        buffers = Buffers(self._stages, microbatches, loss_scale, self._transfers, self.meter)
        ProgramLoop(buffers, marks, self._clock, self._part.watcher).run(self._program)
        return buffers.loss


def microbatches_of(program: Program) -> tuple[int, ...]:
    """Microbatches that appear in a rank's program, ascending."""
    actions = [event for event in program if isinstance(event, Action)]
    return tuple(sorted({action.microbatch for action in actions}))
