"""The plan's forwards alone, on a model in eval mode: the loss of a batch without training on it."""

from collections.abc import Mapping

import torch
from torch import distributed, nn

from autopart.errors import ModelError
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.runtime.capture.capture import Captured, batch_leaves, capture_model
from autopart.runtime.capture.stage_modules import StageProgram, split_stages
from autopart.runtime.engine.buffers import Buffers, Tensors
from autopart.runtime.engine.executor import microbatches_of
from autopart.runtime.engine.plan_match import GRANULARITIES, place_on
from autopart.runtime.engine.program_loop import ProgramLoop
from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.measuring.clock import clock_of
from autopart.runtime.measuring.step_trace import begin_marks
from autopart.runtime.measuring.watcher import Unwatched
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.schedules.actions import Action, Schedule
from autopart.schedules.messages import write_messages


class Evaluation:
    """One rank's part of the forwards. Its stages share their parameters with the rank's pipeline."""

    def __init__(
        self,
        plan: Plan,
        captured: Captured,
        programs: tuple[StageProgram, ...],
        device: torch.device,
    ) -> None:
        """`captured` is the model in eval mode, and `programs` its stages. Collective."""
        rank, ranks = distributed.get_rank(), stage_ranks(plan)
        orders = forwards_of(schedule_of(plan))
        self._program = write_messages(orders, ranks, receives_first=device.type == "cpu")[rank]
        self._captured, self._device = captured, device
        group = distributed.new_group([rank], use_local_synchronization=True)
        assert isinstance(group, distributed.ProcessGroup)
        self._stages: dict[int, TorchStage] = {}
        for index, program in enumerate(programs):
            if rank in ranks[index]:
                place_on(program.module, device)
                self._stages[index] = TorchStage(
                    program, index, len(ranks), plan.num_microbatches, device, group
                )

    def loss(self, parts: Mapping[int, Batch], weights: Mapping[int, float]) -> torch.Tensor:
        """The sum of the microbatches' losses, each times its weight, on every rank. Collective.

        A weight of 0 leaves a microbatch out, also where its loss is not a number.
        """
        mine = {m: self._leaves(parts[m]) for m in microbatches_of(self._program)}
        clock = clock_of(self._device)
        buffers = Buffers(self._stages, mine, 1.0)
        buffers.weights = weights

        def compute(action: Action, needed: Tensors) -> None:
            buffers.compute(action, needed)
            self._stages[action.stage].forget(action.microbatch)

        with torch.no_grad():
            loop = ProgramLoop(buffers, begin_marks(clock, self._device), clock, Unwatched())
            loop.run(self._program, compute)
            total = torch.zeros((), dtype=torch.float64, device=self._device)
            if buffers.loss is not None:
                total += buffers.loss
            distributed.all_reduce(total)
        return total

    def _leaves(self, part: Batch) -> dict[str, torch.Tensor]:
        read = [name for stage in self._stages.values() for name in stage.program.inputs]
        leaves = batch_leaves(self._captured, part)
        return {name: leaves[name].to(self._device) for name in dict.fromkeys(read)}


def capture_for_evaluation(
    plan: Plan, model: nn.Module, batch: Batch, autocast: torch.dtype | None
) -> tuple[Captured, tuple[StageProgram, ...]]:
    """The model in eval mode, cut into the plan's stages. The model's own modes stay.

    Raises ModelError where it has other layers than the plan in eval mode.
    """
    training = TrainingModel(model, name=type(model).__name__)
    modes = {module: module.training for module in model.modules()}
    layers = [stage.layers for stage in plan.stages]
    model.eval()
    try:
        for granularity in GRANULARITIES:
            captured = capture_model(training, batch, granularity=granularity, autocast=autocast)
            if {layer.name for layer in captured.layers} == {n for names in layers for n in names}:
                return captured, split_stages(captured, layers)
    finally:
        for module, mode in modes.items():
            module.training = mode
    raise ModelError(
        f"{training.name} has other layers in eval mode than in the plan, so it cannot be evaluated under it"
    )


def forwards_of(schedule: Schedule) -> Schedule:
    """The forwards of a schedule, in its order; none is part of an overlapped pair."""
    return tuple(
        tuple(Action(a.stage, "F", a.microbatch) for a in order if a.op == "F")
        for order in schedule
    )
