"""Runs one rank's part of a step, in the plan's order."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from autopart.runtime.engine.buffers import Buffers, Stages, Tensors
from autopart.runtime.engine.lending import StashMoves
from autopart.runtime.engine.program_loop import ProgramLoop
from autopart.runtime.engine.rank_executor import RankPart, StepExecutor
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.transfers import BETWEEN_RANKS, Transport
from autopart.runtime.measuring.side_by_side import side_by_side
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
        transfers: Transport = BETWEEN_RANKS,
        moves: StashMoves | None = None,
    ) -> None:
        super().__init__(part)
        self._stages = dict(stages)
        self._program = program
        self._transfers = transfers
        self._moves = moves or StashMoves()
        self._pairs = side_by_side(part.device)
        # A stage's gradients are complete after its last B or W.
        makes = [event for event in program if isinstance(event, Action) and event.op in "BW"]
        self._last = set({action.stage: action for action in makes}.values())

    @property
    def microbatches(self) -> tuple[int, ...]:
        """This rank's microbatches."""
        return microbatches_of(self._program)

    @property
    def borrowed(self) -> Sequence[torch.Tensor]:
        """The memory that this rank has for another rank's stash, between two steps."""
        return self._moves.places

    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        buffers = Buffers(self._stages, microbatches, loss_scale, self._transfers, self.meter)
        buffers.weights = self._weights
        watcher = self._part.watcher
        loop = ProgramLoop(buffers, marks, self._clock, watcher, self._pairs, self._moves)
        self._moves.begin()
        loop.run(self._program, partial(self._compute, buffers) if self._sums else None)
        return buffers.loss

    def _compute(self, buffers: Buffers, action: Action, needed: Tensors) -> None:
        """Run an action; sums go out beside a stage's last one that makes gradients."""
        if action not in self._last:
            buffers.compute(action, needed)
            return
        stage = self._stages[action.stage]
        state = self._part.state
        with self._part.sums.beside(action.stage) as made:
            if state is None:
                stage.made = made
                buffers.compute(action, needed)
            else:
                state.stages[action.stage].made = made
                buffers.compute(action, needed)
                state.end_stage(action.stage)
                state.stages[action.stage].made = None
        stage.made = None


def microbatches_of(program: Program) -> tuple[int, ...]:
    """Microbatches that appear in a rank's program, ascending."""
    actions = [event for event in program if isinstance(event, Action)]
    return tuple(sorted({action.microbatch for action in actions}))
