"""A stage of a plan as torch's schedules drive it, and when it acts."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage

from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.clock import Clock
from autopart.runtime.execution.stage import ByName, examples
from autopart.runtime.execution.step_trace import Marks
from autopart.runtime.execution.watcher import Watcher
from autopart.runtime.execution.weight_gradients import Deed, put_off, run_put_off
from autopart.schedule import Action, Op


def leaf_name(name: str) -> str:
    """What a tensor of the batch is called in torch's step, which has arguments of its own."""
    return f"leaf_{name}"


class Notes:
    """Notes when the stages of a rank act. Torch's schedules wait between actions, and do not say
    when: all time between two actions counts as waiting."""

    def __init__(self, watcher: Watcher, clock: Clock, microbatches: Sequence[int]) -> None:
        self._watcher = watcher
        self._clock = clock
        self._microbatches = microbatches
        self._marks: Marks | None = None

    def begin(self, marks: Marks) -> None:
        """A new step."""
        self._marks = marks
        self._last = marks.begin

    def acting(self, stage: int, op: Op, microbatch: int, deed: Callable[[], Any]) -> Any:
        """Do it and note it; `microbatch` is counted within the replica."""
        assert self._marks is not None
        action = Action(stage, op, self._microbatches[microbatch])
        self._watcher.working(str(action))
        ready, core = self._clock.mark(), time.thread_time()
        result = deed()
        end = self._clock.mark()
        self._marks.add(action, (self._last, ready, end), time.thread_time() - core)
        self._last = end
        self._watcher.waiting(f"what follows {action}", None)
        return result


class ScheduledStage(PipelineStage):
    """The stage `index`; a backward in halves puts off what of the weights' gradients can wait."""

    def __init__(
        self,
        program: StageProgram,
        index: int,
        stage_ranks: Sequence[int],
        *,
        group: Any,
        splits: bool,
        notes: Notes,
        device: torch.device,
    ) -> None:
        """`stage_ranks` are the ranks of all stages within `group`."""
        super().__init__(
            _Unstacked(program),
            index,
            len(stage_ranks),
            device,
            input_args=examples(program.received_meta),
            output_args=examples(program.output_meta),
            group=group,
            dw_builder=self._weights_part if splits else None,
        )
        self.stage_index_to_group_rank = dict(enumerate(stage_ranks))
        self._notes = notes
        self._put_off: list[Deed] = []

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **options: Any) -> Any:
        """Torch's, noted."""
        forward = super().forward_one_chunk
        return self._noted("F", fwd_chunk_id, lambda: forward(fwd_chunk_id, *args, **options))

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """Torch's, noted; what is put off goes to `_weights_part`, which torch calls within."""
        backward = super().backward_one_chunk

        def deed() -> None:
            if self.dw_builder is None:
                backward(bwd_chunk_id, loss, full_backward, last_backward)
                return
            with put_off(self._put_off):
                backward(bwd_chunk_id, loss, full_backward, last_backward)

        self._noted("B" if full_backward else "I", bwd_chunk_id, deed)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Torch's, noted."""
        backward = super().backward_weight_one_chunk
        self._noted("W", bwd_chunk_id, lambda: backward(bwd_chunk_id, last_backward))

    def _noted(self, op: Op, microbatch: int, deed: Callable[[], Any]) -> Any:
        return self._notes.acting(self.stage_index, op, microbatch, deed)

    def _weights_part(self) -> Callable[..., None]:
        deeds = list(self._put_off)
        self._put_off.clear()
        return partial(run_put_off, deeds)


class _Unstacked(ByName):
    """Takes each batch tensor as torch's schedules hand it out: with a dimension of microbatches."""

    def leaf(self, leaves: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        return leaves[leaf_name(name)][0]
