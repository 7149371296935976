"""The second backend: torch's own schedules drive the stages of a plan.

    the schedule class that a plan is named after, where it makes the plan's orders
    else torch's runtime of schedule files, which is given the plan's orders

One schedule drives one replica, on a process group of its own. Torch sends, receives and keeps; what
is ours is the cut stage, the sum of gradients over replicas and tied weights, and a backward in
halves, which torch lets a stage bring along (``dw_builder``).
"""

# pyright: reportPrivateUsage=false

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.pipelining import schedules

from autopart.errors import PlanError
from autopart.exporters.shape import csv_of
from autopart.exporters.torch_replicas import orders_of_replica, replicas_of, torch_name
from autopart.plan import Plan, schedule_of
from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.rank_executor import RankPart, StepExecutor
from autopart.runtime.execution.scheduled_stage import Notes, ScheduledStage, leaf_name
from autopart.runtime.execution.stage import Leaves
from autopart.runtime.execution.step_trace import Marks
from autopart.schedule import dealt


class TorchBackend(StepExecutor):
    """One rank's stages, run by a schedule of torch's."""

    def __init__(self, plan: Plan, part: RankPart) -> None:
        """Of a plan that `check_can_run` lets pass; every rank must call this: it makes process
        groups."""
        super().__init__(part)
        replicas, rank = replicas_of(plan), distributed.get_rank()
        ranks = [sorted(set(on)) for on in replicas]
        groups = [distributed.new_group(on) for on in ranks]
        self._replica = next(index for index, on in enumerate(ranks) if rank in on)
        self._microbatches = dealt(range(len(replicas)), self._replica, plan.num_microbatches)
        self._losses = _Losses()
        self._notes = Notes(part.watcher, self._clock, self._microbatches)
        self._stages = [
            ScheduledStage(
                program,
                index,
                [ranks[self._replica].index(r) for r in replicas[self._replica]],
                group=groups[self._replica],
                splits=_splits_backward(plan, index),
                notes=self._notes,
                device=part.device,
            )
            for index, program in self.programs.items()
        ]
        self._schedule = self._make_schedule(plan, replicas)

    @property
    def microbatches(self) -> tuple[int, ...]:
        """Those of this rank's replica."""
        return tuple(self._microbatches)

    def _make_schedule(self, plan: Plan, replicas: Sequence[Sequence[int]]) -> Any:
        options: dict[str, Any] = {"loss_fn": self._losses.of, "scale_grads": False}
        name, count = torch_name(plan, replicas), len(self._microbatches)
        if name is None:
            planned = _PlannedOrders(self._stages, count, **options)
            orders = csv_of(orders_of_replica(plan, self._replica, replicas))
            with tempfile.TemporaryDirectory(prefix="autopart-orders-") as folder:
                file = Path(folder) / "orders.csv"
                file.write_text(orders, encoding="utf-8")
                planned._load_csv(str(file))
            return planned
        kind: Any = schedules.get_schedule_class(name)
        single = issubclass(kind, schedules.PipelineScheduleSingle)
        return kind(self._stages[0] if single else self._stages, count, **options)

    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        self._losses.begin(loss_scale)
        self._notes.begin(marks)
        # Stacked along a new dimension, which the schedule splits again and the stage takes off:
        # a batch tensor need not have a dimension of its own for the samples.
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
    """The loss function that torch's schedules call, and what it has seen in a step."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self._scale = 1.0

    def begin(self, scale: float) -> None:
        """A new step, whose losses count `scale` each."""
        self.total, self._scale = None, scale

    def of(self, outputs: Any, _: torch.Tensor) -> torch.Tensor:
        """The loss that the last stage gives, scaled for its gradients."""
        loss: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        seen = loss.detach()
        self.total = seen if self.total is None else self.total + seen
        return loss * self._scale


class _PlannedOrders(schedules._PipelineScheduleRuntime):
    """Orders from a file. Torch's runtime finds the n-th loss where it looks for microbatch n's,
    which gives wrong gradients where the last stage takes microbatches in another order."""

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
    """Raise PlanError for a stage that trains nothing; `programs` are those of all stages, so that no rank
    goes on and waits for one that was refused."""
    for index, program in enumerate(programs[:-1]):
        if not any(meta.requires_grad for meta in program.output_meta):
            raise PlanError(
                f"--backend torch cannot run this plan: nothing in stage {index} is trained, and torch "
                "has no backward of nothing; leave --backend out, or solve with its layers in one "
                "stage with trained ones"
            )


def _splits_backward(plan: Plan, index: int) -> bool:
    actions = (action for order in schedule_of(plan) for action in order)
    return any(action.op == "W" and action.stage == index for action in actions)
