"""A plan's stage under torch's schedules, and a recorder for its actions."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage

from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.no_gradient import is_no_gradient, no_gradient
from autopart.runtime.engine.stage import ByName, examples
from autopart.runtime.measuring.clock import DeviceClock
from autopart.runtime.measuring.step_trace import Marks
from autopart.runtime.measuring.watcher import Watcher
from autopart.runtime.transforms import seeded_draws
from autopart.runtime.transforms.split_backward import DeferredWork, defer, run_deferred
from autopart.schedules.actions import Action, Op


def leaf_name(name: str) -> str:
    """A batch tensor's name in calls to torch's `step`; the prefix avoids torch's own arguments."""
    return f"leaf_{name}"


class ActionRecorder:
    """Records the actions of a rank's stages.

    Torch's schedules wait between actions without saying when. So all time between two actions
    counts as waiting.
    """

    def __init__(self, watcher: Watcher, clock: DeviceClock, microbatches: Sequence[int]) -> None:
        self._watcher = watcher
        self._clock = clock
        self._microbatches = microbatches
        self._marks: Marks | None = None

    def begin(self, marks: Marks) -> None:
        """Start a step."""
        self._marks = marks
        self._last = marks.begin

    def record(self, stage: int, op: Op, microbatch: int, compute: Callable[[], Any]) -> Any:
        """Run an action and record it; `microbatch` counts within the replica."""
        assert self._marks is not None
        action = Action(stage, op, self._microbatches[microbatch])
        self._watcher.working(str(action))
        seeded_draws.starts(action.microbatch, is_backward=op != "F")
        ready, core = self._clock.mark(), time.thread_time()
        result = compute()
        end = self._clock.mark()
        self._marks.add(action, (self._last, ready, end), time.thread_time() - core)
        self._last = end
        self._watcher.waiting(f"the action after {action}", None)
        return result


class ScheduledStage(PipelineStage):
    """Stage `index` for torch's schedules.

    With `splits`, its split backwards defer weight gradients. With `use_varies`, a received value that
    was not used gets `no_gradient`. Torch would send zeros, and AdamW would move the weights behind them.
    """

    def __init__(
        self,
        program: StageProgram,
        index: int,
        stage_ranks: Sequence[int],
        *,
        group: Any,
        splits: bool,
        recorder: ActionRecorder,
        device: torch.device,
    ) -> None:
        """`stage_ranks` has one entry per stage: its rank within `group`."""
        super().__init__(
            _Unstacked(program),
            index,
            len(stage_ranks),
            device,
            input_args=examples(program.received_meta),
            output_args=examples(program.output_meta),
            group=group,
            dw_builder=self._weight_backward if splits else None,
        )
        self.stage_index_to_group_rank = dict(enumerate(stage_ranks))
        self._recorder = recorder
        self._received_meta = program.received_meta
        self.use_varies = False
        """Whether each microbatch may use other weights and values."""
        self._deferred: list[DeferredWork] = []

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **options: Any) -> Any:
        """Torch's forward, recorded."""
        forward = super().forward_one_chunk
        return self._recorded("F", fwd_chunk_id, lambda: forward(fwd_chunk_id, *args, **options))

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """Torch's backward, recorded. Within it torch takes the deferred work from `dw_builder`."""
        backward = super().backward_one_chunk

        def compute() -> None:
            with nullcontext() if self.dw_builder is None else defer(self._deferred):
                backward(bwd_chunk_id, loss, full_backward, last_backward)
            if self.use_varies:
                self._mark_unused(bwd_chunk_id)

        self._recorded("B" if full_backward else "I", bwd_chunk_id, compute)

    def backward_maybe_with_nosync(
        self, backward_type: Any, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """Torch's backward, without the outputs that the next stage did not use."""
        backward, gradients = super().backward_maybe_with_nosync, bwd_kwargs["output_grads"]
        if not self.use_varies or gradients is None:  # the last stage receives no gradients
            return backward(backward_type, bwd_kwargs, last_backward)
        pairs = zip(bwd_kwargs["stage_output"], gradients, strict=True)
        used = [(out, grad) for out, grad in pairs if grad is not None and not is_no_gradient(grad)]
        if not used:
            return tuple(None for _ in bwd_kwargs["input_values"]), None
        outputs, gradients = zip(*used, strict=True)
        of_used = {**bwd_kwargs, "stage_output": outputs, "output_grads": gradients}
        return backward(backward_type, of_used, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Torch's weight-gradient half W, recorded."""
        backward = super().backward_weight_one_chunk
        self._recorded("W", bwd_chunk_id, lambda: backward(bwd_chunk_id, last_backward))

    def _recorded(self, op: Op, microbatch: int, compute: Callable[[], Any]) -> Any:
        return self._recorder.record(self.stage_index, op, microbatch, compute)

    def _mark_unused(self, microbatch: int) -> None:
        """Put the tensor without a gradient where torch sends zeros."""
        pairs = zip(self.bwd_cache[microbatch], self._received_meta, strict=True)
        self.bwd_cache[microbatch] = tuple(
            no_gradient(meta.shape, meta.dtype, self.device)
            if gradient is None and meta.requires_grad
            else gradient
            for gradient, meta in pairs
        )

    def _weight_backward(self) -> Callable[..., None]:
        deferred = list(self._deferred)
        self._deferred.clear()
        return partial(run_deferred, deferred)


class _Unstacked(ByName):
    """Removes the microbatch dimension that torch's schedules leave on each batch tensor."""

    def leaf(self, leaves: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        return leaves[leaf_name(name)][0]
