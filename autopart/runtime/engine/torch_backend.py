"""The second backend: torch's own schedules run a plan's stages.

    torch's schedule class with the plan's schedule name, if it makes the plan's orders
    else torch's runtime for schedule files, with the plan's orders

One torch schedule runs one replica, on its own process group. Torch sends, receives and keeps
tensors. Ours are the stage modules, the gradient sums over replicas and tied weights, and split
backwards, for which torch accepts a function (``dw_builder``).
"""

# pyright: reportPrivateUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed.pipelining import schedules

from autopart.errors import PlanError, UsageError
from autopart.records.plan import Plan, schedule_of
from autopart.records.torch_replicas import orders_of_replica, replicas_of, torch_name
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.rank_executor import RankPart, StepExecutor
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.torch_scheduled_stage import (
    ActionRecorder,
    ScheduledStage,
    leaf_name,
)
from autopart.runtime.measuring.step_trace import Marks
from autopart.schedules.actions import dealt
from autopart.schedules.torch_names import csv_of
from autopart.stopping.signals import temporary_folder


class TorchBackend(StepExecutor):
    """Runs one rank's stages with a torch schedule."""

    def __init__(self, plan: Plan, part: RankPart) -> None:
        """`plan` must pass `check_can_run`. Collective over all ranks: it creates process
        groups."""
        super().__init__(part)
        replicas, rank = replicas_of(plan), distributed.get_rank()
        ranks = [sorted(set(of_replica)) for of_replica in replicas]
        groups = [distributed.new_group(of_replica) for of_replica in ranks]
        self._replica = next(i for i, of_replica in enumerate(ranks) if rank in of_replica)
        self._microbatches = dealt(range(len(replicas)), self._replica, plan.num_microbatches)
        self._losses = _Losses()
        self._recorder = ActionRecorder(part.watcher, self._clock, self._microbatches)
        self._stages = [
            ScheduledStage(
                program,
                index,
                [ranks[self._replica].index(r) for r in replicas[self._replica]],
                group=groups[self._replica],
                splits=_splits_backward(plan, index),
                recorder=self._recorder,
                device=part.device,
            )
            for index, program in self.programs.items()
        ]
        for stage in self._stages:
            stage.use_varies = part.sums.use_varies
        self._schedule = self._make_schedule(plan, replicas)

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches that this rank's replica runs."""
        return tuple(self._microbatches)

    def _make_schedule(self, plan: Plan, replicas: Sequence[Sequence[int]]) -> Any:
        options: dict[str, Any] = {"loss_fn": self._losses.of, "scale_grads": False}
        name, microbatches_per_replica = torch_name(plan, replicas), len(self._microbatches)
        if name is None:
            planned = _LossesByMicrobatch(self._stages, microbatches_per_replica, **options)
            orders = csv_of(orders_of_replica(plan, self._replica, replicas))
            with temporary_folder("autopart-orders-") as folder:
                file = folder / "orders.csv"
                file.write_text(orders, encoding="utf-8")
                planned._load_csv(str(file))
            return planned
        kind: Any = schedules.get_schedule_class(name)
        single = issubclass(kind, schedules.PipelineScheduleSingle)
        stages = self._stages[0] if single else self._stages
        return kind(stages, microbatches_per_replica, **options)

    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        if self._weights is not None:
            raise UsageError("torch's schedules take no weights of microbatches; leave out backend")
        self._losses.begin(loss_scale)
        self._recorder.begin(marks)
        # A batch tensor may have no dimension for samples. So microbatches are stacked along a new
        # dimension, which torch's schedule splits and the stage removes.
        leaves = {
            leaf_name(name): torch.stack([microbatches[m][name] for m in self._microbatches])
            for name in self.inputs
        }
        ends = any(stage.is_last for stage in self._stages)
        given: dict[str, Any] = {"losses": []} if ends else {}
        if ends:
            given["target"] = torch.zeros(len(self._microbatches))
        self._schedule.step(return_outputs=False, **given, **leaves)
        return self._losses.total


class _Losses:
    """The loss function for torch's schedules; it also sums the losses of a step."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self._scale = 1.0

    def begin(self, scale: float) -> None:
        """Start a step in which each loss is multiplied by `scale`."""
        self.total, self._scale = None, scale

    def of(self, outputs: Any, _: torch.Tensor) -> torch.Tensor:
        """The last stage's output, which is the loss, scaled for its gradients."""
        loss: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        seen = loss.detach()
        self.total = seen if self.total is None else self.total + seen
        return loss * self._scale


class _LossesByMicrobatch(schedules._PipelineScheduleRuntime):
    """Torch's runtime for schedule files, with losses found by microbatch.

    Torch takes the n-th computed loss as microbatch n's loss. That gives wrong gradients if the
    last stage runs microbatches in another order.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._by_microbatch: dict[int, torch.Tensor] = {}

    def _maybe_compute_loss(
        self, stage: Any, output: Any, target_mbs: Any, mb_index: int, loss_kwargs: Any = None
    ) -> None:
        if stage.is_last:
            self._by_microbatch[mb_index] = self._compute_loss(output, target_mbs[mb_index])

    def _maybe_get_loss(self, stage: Any, mb_index: int) -> torch.Tensor | None:
        return self._by_microbatch.pop(mb_index) if stage.is_last else None

    def _update_losses(self, stages: Any, losses: list[torch.Tensor] | None = None) -> None:
        self._by_microbatch.clear()


def check_backwards(programs: Sequence[StageProgram]) -> None:
    """Raise PlanError if a stage except the last has no output that requires gradients.

    `programs` must cover all stages, so that all ranks raise together and none waits for another.
    """
    for index, program in enumerate(programs[:-1]):
        if not any(meta.requires_grad for meta in program.output_meta):
            raise PlanError(
                f"--backend torch cannot run this plan: nothing up to stage {index} is trained, "
                "and torch cannot run a backward without gradients; leave --backend out, or solve "
                "with its layers in one stage with trained ones"
            )


def _splits_backward(plan: Plan, index: int) -> bool:
    actions = (action for order in schedule_of(plan) for action in order)
    return any(action.op == "W" and action.stage == index for action in actions)
