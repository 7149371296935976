"""A plan in a training loop of your own: `make_pipeline` once, `Pipeline.step` for each batch."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import distributed, fx, nn
from torch.utils import _pytree as pytree

from autopart.errors import UsageError
from autopart.plan import Plan, num_ranks
from autopart.runtime.capture.capture import Captured, batch_leaves
from autopart.runtime.capture.split import StageProgram, split_stages
from autopart.runtime.execution.assembly import make_executor
from autopart.runtime.execution.gradients import clip, unscale
from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.execution.plan_match import Backend, capture_for_plan, check_same_weights
from autopart.runtime.execution.rank_executor import RankExecutor, StepExecutor
from autopart.runtime.execution.rank_optimizer import rank_optimizer
from autopart.runtime.execution.stage import Leaves
from autopart.runtime.execution.state import Names, all_names, named_module
from autopart.runtime.models.model import Batch, TrainingModel


class PipelinePart:
    """One rank's part of a model: its tensors under the model's own names."""

    def __init__(self, executor: RankExecutor, cut: "CutModel") -> None:
        """`cut` is what the executor's stages were made of."""
        self._rank, self._plan = executor, cut.plan
        programs = list(executor.programs.values())
        self.module: nn.Module = named_module(cut.names, programs)
        """This rank's parameters and buffers under the names of the original model: for
        ``state_dict``, and for torch.distributed.checkpoint, which takes modules."""
        # Only the names and shapes of the batch are needed; the weights need not live for them.
        self._captured = replace(cut.captured, module=fx.GraphModule({}, fx.Graph()))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of this rank by their names in the original model, for an optimizer."""
        return self._rank.parameters

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This rank's part of the original model's state dict; those of all ranks together are the
        whole, but for what has no part in the loss. Tied parameters stand under each name."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take this rank's part of a state dict, which may be that of the whole model.

        Raises UsageError where one of this rank's tensors is missing or has another shape.
        """
        for name, tensor in self.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                raise UsageError(
                    f"'{name}' of shape {tuple(tensor.shape)} {found} in the state to load; give "
                    "the state of the same model"
                )
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(state[name])

    def make_optimizer(self, name: str = "adamw", lr: float | None = None) -> Optimizer:
        """adamw, sgd-momentum, sgd or adafactor for `parameters`, with its state where the plan has it: on
        the host, or shared out among replicas. Raises UsageError where those do not go together."""
        return rank_optimizer(self._plan, self._rank, name, lr)

    def leaves_of(self, part: Batch) -> Leaves:
        """The tensors of a microbatch that this rank's stages read, on its device."""
        leaves, device = batch_leaves(self._captured, part), self._rank.device
        return {name: leaves[name].to(device) for name in self._rank.inputs}


class Pipeline(PipelinePart):
    """One rank of a model that trains in a pipeline.

    Data, optimizer, learning rate and what is saved are the caller's. `step` leaves gradients in
    ``grad`` of the parameters, summed over replicas and tied copies, so that an optimizer on every
    rank that holds a copy makes the same step.
    """

    def __init__(self, executor: StepExecutor, cut: "CutModel", num_microbatches: int) -> None:
        """`make_pipeline` makes one."""
        super().__init__(executor, cut)
        self.executor = executor
        self._num_microbatches = num_microbatches

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches of each batch that this rank takes part in."""
        return self.executor.microbatches

    def step(
        self, batch: Batch | Mapping[int, Batch], *, scale: float = 1.0, sync: bool = True
    ) -> torch.Tensor:
        """Forward and backward of one batch; gives the mean loss of its microbatches, on each rank.

        `batch` is ``(inputs, target)`` of the whole batch, whose tensors are divided along their
        first dimension, the same on all ranks; or a mapping from the number of a microbatch to its
        ``(inputs, target)`` with at least those of `microbatches`, where each rank loads only what
        it needs. The gradients are those of the mean loss times `scale` (of a loss scaler, or one
        over the number of batches that are added up), added to what ``grad`` held. With `sync`
        False they are left unsummed over replicas and tied copies, for another `step` to add to;
        the last one before the optimizer's must have it True. Every rank must call this. Raises
        ModelError for a batch of other shapes than the plan's, LostPeer where another rank is gone.
        """
        parts = self._parts(batch)
        share = self.executor.step(
            {m: self.leaves_of(parts[m]) for m in self.microbatches}, scale=scale, sync=sync
        )
        total = torch.zeros((), dtype=torch.float64, device=self.executor.device)
        if share is not None:
            total += share
        distributed.all_reduce(total)
        return total

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """As ``torch.nn.utils.clip_grad_norm_`` on the whole model; gives the norm before.

        Every rank must call this, after a `step` with `sync`.
        """
        return clip(self.executor, max_norm)

    def unscale_gradients(self, scale: float) -> bool:
        """Divide all gradients by a loss scale; whether they are finite numbers on all ranks.

        Where they are not, skip the optimizer's step and scale the loss by less. Every rank must
        call this, after a `step` with `sync`.
        """
        return unscale(self.executor, scale)

    def _parts(self, batch: Batch | Mapping[int, Batch]) -> Mapping[int, Batch]:
        if isinstance(batch, Mapping):
            missing = [m for m in self.microbatches if m not in batch]
            if missing:
                raise UsageError(
                    f"the batch lacks microbatch {missing[0]}; this rank takes part in "
                    f"{', '.join(map(str, self.microbatches))}"
                )
            return batch
        return dict(enumerate(split_batch(batch, self._num_microbatches)))


class CutModel(NamedTuple):
    """A model that was captured and cut as a plan says, on every rank alike."""

    plan: Plan
    captured: Captured
    names: Names
    programs: tuple[StageProgram, ...]


def cut_model(
    plan: Plan,
    model: nn.Module,
    batch: Batch,
    loss_fn: Any,
    autocast: torch.dtype | None,
) -> CutModel:
    """Capture the model and cut it; raises as `make_pipeline`, on every rank alike."""
    if num_ranks(plan) != distributed.get_world_size():
        raise UsageError(
            f"the plan is for {num_ranks(plan)} ranks, but the process group has "
            f"{distributed.get_world_size()}"
        )
    training = TrainingModel(model, loss_fn, name=type(model).__name__)
    check_same_weights(training)
    captured = capture_for_plan(plan, training, batch, autocast)
    programs = split_stages(captured, [stage.layers for stage in plan.stages])
    return CutModel(plan, captured, all_names(training), programs)


def make_pipeline(
    plan: Plan,
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: Any = None,
    device: torch.device | str | None = None,
    backend: Backend = "autopart",
    autocast: torch.dtype | None = None,
) -> Pipeline:
    """This rank's part of `model` as `plan` has it, in the default process group.

    `model` must have the same weights on every rank and the dtype of the plan; its parameters
    become the pipeline's, so drop it afterwards to free those of other ranks. `batch` is the
    ``(inputs, target)`` of one microbatch of the plan's size. `loss_fn(output, target)` gives the
    loss; without one the model returns its own. `device` is where this rank computes, by default
    its current GPU, where the process group uses NCCL, else the CPU. With `backend` "torch" torch's
    own schedules run the plan, where they can. With `autocast` forwards compute under torch's autocast
    to that dtype; the model must then stand on the kind of device that runs it. Every rank must call this.
    Raises PlanError for a plan of another model or number of ranks, ModelError for a model that
    cannot be used or has other weights on some rank.
    """
    cut = cut_model(plan, model, batch, loss_fn, autocast)
    executor = make_executor(plan, cut.programs, device=device_of(device), backend=backend)
    pipeline = Pipeline(executor, cut, plan.num_microbatches)
    del cut
    gc.collect()  # Graphs are circles, and hold the weights of the other ranks' stages.
    return pipeline


def split_batch(batch: Batch, num_microbatches: int) -> Sequence[Batch]:
    """A batch's microbatches: every tensor with a first dimension is divided along it.

    Raises UsageError where a tensor's first dimension is no multiple of `num_microbatches`.
    """

    def part(m: int, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            return leaf
        size, rest = divmod(leaf.shape[0], num_microbatches)
        if rest:
            raise UsageError(
                f"a batch tensor of shape {tuple(leaf.shape)} cannot be divided into "
                f"{num_microbatches} microbatches along its first dimension; give a mapping of "
                "microbatches instead"
            )
        return leaf[m * size : (m + 1) * size]

    return [cast(Batch, pytree.tree_map(partial(part, m), batch)) for m in range(num_microbatches)]


def device_of(asked: torch.device | str | None) -> torch.device:
    """Where a rank computes: as asked, or its GPU where the process group uses NCCL, or the CPU."""
    if asked is not None:
        return torch.device(asked)
    if "nccl" in str(distributed.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
