"""The schedule of one replica: torch's own, or orders from a file.

Written by autopart. `build_schedule` is the entry.
"""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.pipelining import schedules

from pipeline_plan import NUM_MICROBATCHES, SCHEDULE, SCHEDULE_FILES, microbatches_of
from pipeline_stages import Stages

# Torch has no public name for its schedules' base class, nor for the runtime that takes any order.
Schedule = schedules._PipelineSchedule  # pyright: ignore[reportPrivateUsage]


_Runtime = schedules._PipelineScheduleRuntime  # pyright: ignore[reportPrivateUsage]


def build_schedule(stages: Stages) -> Schedule:
    """The schedule for this rank's replica.

    Each microbatch's loss is divided by the number of microbatches over all replicas. So gradients
    belong to the batch's mean loss, and torch must not scale them again.
    """

    def mean_loss(loss: torch.Tensor, _: Any) -> torch.Tensor:
        return loss.sum() / NUM_MICROBATCHES

    options: dict[str, Any] = {
        "n_microbatches": microbatches_of(stages.replica),
        "loss_fn": mean_loss,
        "scale_grads": False,
    }
    if SCHEDULE is None:
        planned = _OrdersFromFile(stages.pipeline_stages, **options)
        planned.load(Path(__file__).with_name(SCHEDULE_FILES[stages.replica]))
        return planned
    if issubclass(SCHEDULE, schedules.PipelineScheduleSingle):
        return SCHEDULE(stages.pipeline_stages[0], **options)
    return SCHEDULE(stages.pipeline_stages, **options)


class _OrdersFromFile(_Runtime):
    """Torch's runtime with orders from a file, and losses by microbatch.

    Torch's own runtime takes the n-th loss for the loss of microbatch n. That gives wrong gradients
    where the last stage runs microbatches in another order.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses_by_microbatch: dict[int, torch.Tensor] = {}

    def load(self, orders: Path) -> None:
        """Read the orders from the file."""
        self._load_csv(str(orders))

    def _maybe_compute_loss(
        self, stage: Any, output: Any, target_mbs: Any, mb_index: int, loss_kwargs: Any = None
    ) -> None:
        if stage.is_last:
            assert self._loss_fn is not None
            self.losses_by_microbatch[mb_index] = self._loss_fn(output, None)

    def _maybe_get_loss(self, stage: Any, mb_index: int) -> torch.Tensor | None:
        return self.losses_by_microbatch[mb_index] if stage.is_last else None

    def _update_losses(self, stages: Any, losses: list[torch.Tensor] | None) -> None:
        if losses is not None:
            losses.extend(self.losses_by_microbatch.values())
        self.losses_by_microbatch.clear()
