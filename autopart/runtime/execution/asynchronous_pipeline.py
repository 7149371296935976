"""A plan in a training loop that never flushes: PipeDream and PipeDream-2BW as a library."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn

from autopart.plan import Plan
from autopart.runtime.execution.assembly import make_asynchronous_executor
from autopart.runtime.execution.asynchronous import AsynchronousExecutor, Trained
from autopart.runtime.execution.pipeline import CutModel, PipelinePart, cut_model, device_of
from autopart.runtime.models.model import Batch


class AsynchronousPipeline(PipelinePart):
    """One rank of a model that trains in a pipeline without flushes.

    Gradients are those of older weights, so training differs from the plain model's: see
    docs/runtime.md. There is no norm of the whole model's gradients to clip by, since no two stages
    are at the same update.
    """

    def __init__(self, executor: AsynchronousExecutor, cut: CutModel) -> None:
        """`make_asynchronous_pipeline` makes one."""
        super().__init__(executor, cut)
        self.executor = executor
        self.seen: Trained | None = None
        """What this rank saw of the last run: which version of its weights met which microbatch."""

    def microbatches(self, num_updates: int) -> tuple[int, ...]:
        """Those of a run of so many updates that this rank takes part in, counted through the run."""
        return self.executor.microbatches(num_updates)

    def train(
        self, load: Callable[[int], Batch], num_updates: int, step: Callable[[], None]
    ) -> torch.Tensor:
        """Run so many updates and empty the pipeline; gives the mean loss of each, on each rank.

        `load(m)` gives ``(inputs, target)`` of microbatch m, counted from 0 through the run;
        `step()` applies the gradients in ``grad`` and clears them: an optimizer's step and
        zero_grad. Every rank must call this. Raises ModelError for a batch of other shapes than the
        plan's, LostPeer where another rank is gone.
        """
        n = self.executor.microbatches_per_update
        seen = self.seen = self.executor.train(lambda m: self.leaves_of(load(m)), num_updates, step)
        losses = torch.zeros(num_updates, dtype=torch.float64, device=self.executor.device)
        for microbatch, loss in seen.losses.items():
            losses[microbatch // n] += loss / n
        distributed.all_reduce(losses)
        return losses


def make_asynchronous_pipeline(
    plan: Plan,
    model: nn.Module,
    batch: Batch,
    schedule: str,
    *,
    loss_fn: Any = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
) -> AsynchronousPipeline:
    """This rank's part of `model` under `schedule`, "pipedream" or "pipedream-2bw", on the stages of
    `plan`; the rest as `make_pipeline`. PipeDream updates after every microbatch, 2BW after as many as
    the plan has.

    Raises PlanError also where the schedule cannot run on the plan's stages.
    """
    cut = cut_model(plan, model, batch, loss_fn, autocast)
    executor = make_asynchronous_executor(plan, cut.programs, schedule, device=device_of(device))
    pipeline = AsynchronousPipeline(executor, cut)
    del cut
    gc.collect()  # Graphs are circles, and hold the weights of the other ranks' stages.
    return pipeline
