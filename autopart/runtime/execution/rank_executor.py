"""What every way to run one rank's stages has: their tensors, the sums of gradients, a clock."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.clock import clock_of
from autopart.runtime.execution.gradient_sum import GradientSum, Shared
from autopart.runtime.execution.offload import HostStash
from autopart.runtime.execution.stage import Leaves, stage_buffers, stage_parameters
from autopart.runtime.execution.stash_meter import StashMeter
from autopart.runtime.execution.step_trace import Marks, StepTrace, begin_marks
from autopart.runtime.execution.transfers import carried
from autopart.runtime.execution.watcher import Watcher


@dataclass(frozen=True, slots=True)
class RankPart:
    """One rank's part of a plan."""

    programs: Mapping[int, StageProgram]
    """Those of its stages by their number in the pipeline; their tensors stand on `device`."""
    hosts: Mapping[int, HostStash | None]
    """Where the offloaded layers of each stage keep their stash; None where it has none."""
    owned: tuple[str, ...]
    """Those of its parameters that no rank before it holds: over all ranks, each parameter of the
    model once."""
    sums: GradientSum
    num_microbatches: int
    """Of all ranks together."""
    device: torch.device
    watcher: Watcher


class RankExecutor:
    """One rank's stages; a rank without any takes part in nothing but sums."""

    def __init__(self, part: RankPart) -> None:
        self.device = part.device
        self.owned = part.owned
        self.programs = dict(part.programs)
        self._part = part
        self._clock = clock_of(part.device)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those of this rank's stages by the user's names, for an optimizer."""
        programs = self.programs.values()
        return {name: p for program in programs for name, p in stage_parameters(program).items()}

    @property
    def shared(self) -> Sequence[Shared]:
        """The parameters that other ranks hold too, by their holders."""
        return self._part.sums.shared

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Those of this rank's stages by the user's names."""
        programs = self.programs.values()
        return {name: b for program in programs for name, b in stage_buffers(program).items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of the batch that this rank's stages read."""
        read = [name for program in self.programs.values() for name in program.inputs]
        return tuple(dict.fromkeys(read))


class StepExecutor(RankExecutor, ABC):
    """Runs batch after batch, each to its end."""

    def __init__(self, part: RankPart) -> None:
        super().__init__(part)
        self._marks: Marks | None = None
        self.meter: StashMeter | None = None
        """Watches what the stages keep, where there is one and the backend can be watched; every
        operation takes longer then."""

    @property
    @abstractmethod
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches that this rank was dealt."""

    def step(
        self, microbatches: Mapping[int, Leaves], *, scale: float = 1.0, sync: bool = True
    ) -> torch.Tensor | None:
        """Run one batch: afterwards every parameter's ``grad`` is that of the batch's mean loss,
        times `scale`, added to what was there.

        `microbatches` holds, for each microbatch that this rank was dealt, the tensors that its
        stages read. Where gradients of several batches are to add up, `sync` must be False for all
        but the last: sums over replicas and tied copies are made once, of everything, and after
        them ``grad`` must be cleared. Gives, on a rank of the last stage, its share of the loss: the
        sum over its microbatches divided by the number of all microbatches, without `scale`.
        Raises LostPeer where another rank is gone.
        """
        part = self._part
        marks = self._marks = begin_marks(self._clock, self.device)
        loss = self._run(microbatches, scale / part.num_microbatches, marks)
        marks.acted = self._clock.mark()
        if sync:
            part.watcher.waiting("the sum of gradients", None)
            carried(part.sums.run, None, "the sum of gradients")
        marks.summed = self._clock.mark()
        return None if loss is None else loss / part.num_microbatches

    def trace(self) -> StepTrace:
        """The last step's times; waits until its work is done."""
        assert self._marks is not None
        return self._marks.trace(self._clock)

    @abstractmethod
    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        """All actions of a step; gives the sum of this rank's losses, if it has the last stage."""
