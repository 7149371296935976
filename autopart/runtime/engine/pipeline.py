"""A plan in your own training loop: `make_pipeline` once, then `Pipeline.step` for each batch."""

import gc
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import distributed, fx, nn

from autopart.errors import UsageError
from autopart.records.plan import Plan, num_ranks
from autopart.records.plan_degrees import (
    degrees_name,
    has_several_degrees,
    num_processes,
    rank_of_process,
)
from autopart.runtime.capture.capture import Captured, batch_leaves
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.assembly import make_executor
from autopart.runtime.engine.batches import own_samples, samples_of_place, split_batch
from autopart.runtime.engine.gradients import clip, unscale
from autopart.runtime.engine.group_part import GroupPart
from autopart.runtime.engine.local_model import local_model_of
from autopart.runtime.engine.plan_match import (
    Backend,
    capture_for_plan,
    check_same_in_group,
    check_same_weights,
    device_of,
)
from autopart.runtime.engine.rank_executor import RankExecutor, StepExecutor
from autopart.runtime.engine.rank_optimizer import rank_optimizer
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.state_dict import Names, all_names, named_module
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.runtime.sharding.groups import TensorGroup
from autopart.runtime.transforms.seeded_draws import SamplePart
from autopart.runtime.update.optimizer import Optimizer
from autopart.text import counted


class PipelinePart:
    """One rank's part of a model: its tensors, under the model's own names."""

    def __init__(self, executor: RankExecutor, cut: "CutModel") -> None:
        """`cut` is the model that the executor's stages come from."""
        self._rank, self._plan, self._samples = executor, cut.plan, cut.samples
        # A tied tensor's shard has its first name.
        self._first_names = {name: first for first, every in cut.names.items() for name in every}
        programs = list(executor.programs.values())
        self.module: nn.Module = named_module(cut.names, programs)
        """This rank's parameters and buffers under their original names.

        Use it for ``state_dict`` and for torch.distributed.checkpoint, which takes modules.
        """
        # Only the batch's names and shapes are needed. An empty module lets the weights be freed.
        self._captured = replace(cut.captured, module=fx.GraphModule({}, fx.Graph()))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by original name, for an optimizer."""
        return self._rank.parameters

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This rank's part of the original model's state dict.

        All ranks' parts together are the whole, except tensors that do not influence the loss. A
        tied parameter appears under each of its names. With a tensor degree the tensors are this
        process's shards, with sharded state its flat parts.
        """
        return self.module.state_dict() | self._rank.parts_named(self._first_names)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load this rank's part of `state`, which may hold the whole model.

        With a tensor degree tensors are either all whole, or all this process's shards. Raises UsageError
        if one of this rank's tensors is missing or has another shape.
        """
        own, shards = self.state_dict(), self._rank.shards
        shapes = {name: tensor.shape for name, tensor in own.items()}
        # Step 1: with a tensor degree another shape than a shard's means that all tensors are whole.
        if any(name in state and state[name].shape != shape for name, shape in shapes.items()):
            if shards is not None:
                first = self._first_names
                shapes = {name: shards.whole_shape(first[name], s) for name, s in shapes.items()}
        else:
            shards = None
        # Step 2: nothing is loaded unless everything fits.
        for name, shape in shapes.items():
            if name not in state or state[name].shape != shape:
                found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                raise UsageError(
                    f"'{name}' of shape {tuple(shape)} {found} in the state to load; give "
                    "a state of the same model"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                given = state[name]
                part = given if shards is None else shards.own_part(self._first_names[name], given)
                tensor.copy_(part)
        self._rank.written()

    def make_optimizer(self, name: str = "adamw", lr: float | None = None) -> Optimizer:
        """An optimizer for `parameters`: "adamw", "sgd-momentum", "sgd" or "adafactor".

        Its state is placed as the plan says: on the host, or in ZeRO shards. Raises UsageError for
        Adafactor with ZeRO-1, which cannot be combined.
        """
        return rank_optimizer(self._plan, self._rank, name, lr)

    def leaves_of(self, part: Batch) -> Leaves:
        """The microbatch tensors that this rank's stages read, on its device."""
        if self._samples is not None:
            part = own_samples(part, self._plan.microbatch_size, self._samples)
        leaves, device = batch_leaves(self._captured, part), self._rank.device
        return {name: leaves[name].to(device) for name in self._rank.inputs}


class Pipeline(PipelinePart):
    """One rank's part of a model that trains in a pipeline.

    The caller provides data, optimizer, learning rate and checkpoints. `step` leaves gradients in
    each parameter's ``grad``, summed over replicas and tied copies. So the optimizers on all ranks
    with a copy make the same step.
    """

    def __init__(self, executor: StepExecutor, cut: "CutModel", num_microbatches: int) -> None:
        """Use `make_pipeline` instead of this constructor."""
        super().__init__(executor, cut)
        self.executor = executor
        self._num_microbatches = num_microbatches

    @property
    def microbatches(self) -> tuple[int, ...]:
        """This rank's microbatches in each batch."""
        return self.executor.microbatches

    def step(
        self,
        batch: Batch | Mapping[int, Batch],
        *,
        scale: float = 1.0,
        sync: bool = True,
        weights: Mapping[int, float] | None = None,
    ) -> torch.Tensor:
        """Run forward and backward for one batch. Collective over all ranks.

        `batch` has one of two forms:

        - ``(inputs, target)`` for the whole batch, equal on all ranks. Its tensors are divided into
          microbatches along their first dimension.
        - A mapping from microbatch number to ``(inputs, target)``. It must contain this rank's
          `microbatches`, so each rank can load only the data that it needs.

        The gradients of `scale` times the mean loss are added to each parameter's ``grad``. `scale`
        comes from a loss scaler, or is 1 / n to accumulate n batches. With `sync` False, gradients
        are not yet summed over replicas and tied copies; the last `step` before the optimizer's
        step must have `sync` True.

        `weights` maps each microbatch to the weight of its loss in the mean; without it each weighs 1.
        So microbatches may count by their numbers of tokens. Torch's backend takes no weights.

        Returns the mean loss over all microbatches, on every rank: a float64 scalar. Raises
        ModelError if a batch has other shapes than the plan, LostRank if another rank is gone.
        """
        parts = self._parts(batch)
        # The caller's own optimizer may have stepped this process's parts.
        self.executor.written()
        shards = self.executor.shards
        with nullcontext() if shards is None else shards.exchanging():
            share = self.executor.step(
                {m: self.leaves_of(parts[m]) for m in self.microbatches},
                scale=scale,
                sync=sync,
                weights=weights,
            )
        share = self.executor.whole_loss(share)
        total = torch.zeros((), dtype=torch.float64, device=self.executor.device)
        if share is not None and (
            self.executor.is_first_place or not self.executor.is_in_one_world
        ):
            total += share
        distributed.all_reduce(total)
        return total

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Clip gradients by the whole model's norm, as ``torch.nn.utils.clip_grad_norm_`` does.

        Returns the norm before. Collective over all ranks; call it after a `step` with `sync`.
        """
        return clip(self.executor, max_norm)

    def unscale_gradients(self, scale: float) -> bool:
        """Divide all gradients by a loss scale; return whether they are finite on all ranks.

        If they are not, skip the optimizer's step and use a smaller scale. Collective over all
        ranks; call it after a `step` with `sync`.
        """
        return unscale(self.executor, scale)

    def _parts(self, batch: Batch | Mapping[int, Batch]) -> Mapping[int, Batch]:
        if isinstance(batch, Mapping):
            missing = [m for m in self.microbatches if m not in batch]
            if missing:
                raise UsageError(
                    f"the batch lacks microbatch {missing[0]}; this rank needs "
                    f"{', '.join(map(str, self.microbatches))}"
                )
            return batch
        return dict(enumerate(split_batch(batch, self._num_microbatches)))


class CutModel(NamedTuple):
    """A model captured and cut into the plan's stages, equal on every rank."""

    plan: Plan
    captured: Captured
    names: Names
    programs: tuple[StageProgram, ...]
    group: GroupPart
    samples: SamplePart | None = None
    """The samples of each microbatch that this process has; None for all."""


def cut_model(
    plan: Plan,
    model: nn.Module,
    batch: Batch,
    loss_fn: Any,
    autocast: torch.dtype | None,
    device: torch.device,
    tensor_group: TensorGroup | None = None,
) -> CutModel:
    """Capture the model and cut it; raises as `make_pipeline` does, on all ranks together."""
    several = has_several_degrees(plan)
    if tensor_group is None and num_processes(plan) > num_ranks(plan):
        raise UsageError(
            f"the plan has {degrees_name(plan)}; call autopart.init_tensor_ranks(plan) in place of "
            "torch.distributed.init_process_group, and give its result as tensor_group"
        )
    size = num_processes(plan) if several else num_ranks(plan)
    if size != distributed.get_world_size():
        raise UsageError(
            f"the plan is for {counted(size, 'rank')}, but the process group has "
            f"{distributed.get_world_size()}"
        )
    training = TrainingModel(model, loss_fn, name=type(model).__name__)
    check_same_weights(training)
    if tensor_group is not None:
        check_same_in_group(training, tensor_group, device)
    place = 0 if tensor_group is None else tensor_group.rank()
    samples = samples_of_place(plan, place)
    if samples is not None:
        batch = own_samples(batch, plan.microbatch_size, samples)
    captured = capture_for_plan(plan, training, batch, autocast)
    rank = rank_of_process(plan, distributed.get_rank()) if several else distributed.get_rank()
    local = local_model_of(plan, captured, rank, place, tensor_group)
    programs, group = local.programs()
    return CutModel(plan, local.captured, all_names(training), programs, group, samples)


def make_pipeline(
    plan: Plan,
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: Any = None,
    device: torch.device | str | None = None,
    backend: Backend = "autopart",
    autocast: torch.dtype | None = None,
    tensor_group: TensorGroup | None = None,
) -> Pipeline:
    """This rank's part of `model` under `plan`, in the default process group. Collective.

    - `model` has equal weights on every rank, and the plan's dtype. The pipeline takes over its
      parameters; drop your own reference, so that other ranks' parameters are freed.
    - `batch` is ``(inputs, target)`` for one microbatch with the plan's size.
    - `loss_fn(output, target)` returns the loss; without it the model itself returns its loss.
    - `device` is this rank's device. Default: its current GPU if the process group uses NCCL, else
      the CPU.
    - `backend` "torch" runs the plan with torch's own schedules, if they can.
    - `autocast` is a dtype: forwards run under torch's autocast to it. The model must then be on the
      kind of device that runs it.
    - `tensor_group` is what `init_tensor_ranks` returned. A plan with a tensor degree needs it.

    Raises PlanError if the plan belongs to another model, UsageError if it has another number of
    ranks. Raises ModelError if the model cannot be used, or has unequal weights on some rank.
    """
    own = device_of(device)
    cut = cut_model(plan, model, batch, loss_fn, autocast, own, tensor_group)
    executor = make_executor(plan, cut.programs, device=own, backend=backend, group=cut.group)
    pipeline = Pipeline(executor, cut, plan.num_microbatches)
    del cut
    gc.collect()  # Graphs are reference cycles, and keep the weights of other ranks' stages.
    return pipeline
