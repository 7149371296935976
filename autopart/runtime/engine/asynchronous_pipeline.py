"""Schedules without flushes in your own training loop."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn

from autopart.records.plan import Plan
from autopart.records.plan_degrees import check_one_gpu_per_rank
from autopart.runtime.engine.assembly import make_asynchronous_executor
from autopart.runtime.engine.asynchronous import AsynchronousExecutor, TrainingRecord
from autopart.runtime.engine.pipeline import CutModel, PipelinePart, cut_model
from autopart.runtime.engine.plan_match import device_of
from autopart.runtime.models.model import Batch
from autopart.runtime.update.optimizer import Optimizer
from autopart.runtime.update.weight_prediction import WeightPrediction


class AsynchronousPipeline(PipelinePart):
    """One rank's part of a model that trains in a pipeline without flushes.

    Gradients are computed at older weights, so training differs from the plain model; see
    docs/runtime.md. Clipping by the whole model's gradient norm is impossible, because no two
    stages are at the same update.
    """

    def __init__(self, executor: AsynchronousExecutor, cut: CutModel) -> None:
        """Use `make_asynchronous_pipeline` instead of this constructor."""
        super().__init__(executor, cut)
        self.executor = executor
        self.seen: TrainingRecord | None = None
        """This rank's record of the last `train`: its losses, and its weight version by
        microbatch."""

    def microbatches(self, num_updates: int) -> tuple[int, ...]:
        """This rank's microbatches in a run with `num_updates` updates, counted through the run."""
        return self.executor.microbatches(num_updates)

    def train(
        self,
        load: Callable[[int], Batch],
        num_updates: int,
        step: Callable[[], None],
        optimizer: Optimizer | torch.optim.Optimizer | None = None,
    ) -> torch.Tensor:
        """Run `num_updates` updates, then empty the pipeline. Collective over all ranks.

        `load(m)` returns ``(inputs, target)`` for microbatch m, counted from 0 through the run.
        `step()` applies the gradients in ``grad`` and clears them: an optimizer's step and
        zero_grad. `optimizer` is the one that `step` steps; schedules that predict weights read its
        state. Returns the mean loss of each update, on every rank: a float64 tensor with
        `num_updates` elements. Raises ModelError if a batch has other shapes than the plan,
        UsageError if weights cannot be predicted, LostRank if another rank is gone.
        """
        n = self.executor.microbatches_per_update
        predict = None
        if isinstance(optimizer, Optimizer):
            predict = optimizer.predict
        elif optimizer is not None:
            predict = WeightPrediction(optimizer).weights
        seen = self.seen = self.executor.train(
            lambda m: self.leaves_of(load(m)), num_updates, lambda _: step(), predict
        )
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
    """This rank's part of `model` on the plan's stages, under an asynchronous schedule.

    `schedule` is "pipedream", "spectrain" or "pipeoptim", with an update after every microbatch, or
    "pipedream-2bw", "xpipe" or "wpipe", with an update after the plan's number of microbatches. All else is
    as in `make_pipeline`. Raises PlanError also if the schedule cannot run on the plan's stages.
    """
    check_one_gpu_per_rank(plan, "an asynchronous pipeline")
    own = device_of(device)
    cut = cut_model(plan, model, batch, loss_fn, autocast, own)
    executor = make_asynchronous_executor(plan, cut.programs, schedule, device=own)
    pipeline = AsynchronousPipeline(executor, cut)
    del cut
    gc.collect()  # Graphs are reference cycles, and keep the weights of other ranks' stages.
    return pipeline
