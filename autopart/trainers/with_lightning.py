"""A Lightning strategy under a plan: a LightningModule as it is, one of whose modules the plan cuts.

Lightning clears gradients between the training step and its backward. The pipeline has run both by then. So
the gradients wait aside from the call of the model until `backward`.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.trainers.needed import needed
from autopart.trainers.planned_model import PlannedModel
from autopart.trainers.whole_optimizer import WholeOptimizer

with needed("lightning"):
    from lightning.pytorch.plugins.precision import Precision
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.trainer.states import TrainerFn

_CLOSE = 1e-6
"""Largest relative difference of two losses that are the same one."""


class PipelineStrategy(DDPStrategy):
    """The ranks of a plan in place of replicas. Every rank reads the same data.

    Give it to Lightning's `Trainer` under torchrun, with `devices` the ranks per node. Its checkpoints have
    the whole model's tensors, and load with other strategies too.
    """

    def __init__(self, plan: Plan, example: Mapping[str, Any], model: str = "model") -> None:
        """`example` is a batch, and `model` the attribute of the LightningModule with the model of the plan."""
        super().__init__()
        self._plan, self._example, self._attribute = plan, example, model
        self._planned: PlannedModel | None = None
        self._loss: torch.Tensor | None = None
        self._waiting: dict[nn.Parameter, torch.Tensor] = {}
        self._wholes: dict[int, WholeOptimizer] = {}

    @property
    def planned(self) -> PlannedModel:
        """The model's part on this rank. Raises UsageError before `fit`."""
        if self._planned is None:
            raise UsageError("the model is cut when fit starts; call trainer.fit first")
        return self._planned

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The same samples on every rank."""
        return {"num_replicas": 1, "rank": 0}

    def setup(self, trainer: Any) -> None:
        """Cut the model, then make optimizers over its parameters. Collective over all ranks."""
        if trainer.state.fn != TrainerFn.FITTING:
            raise UsageError(
                "under a plan only fit runs, with its validation; load the checkpoint into a plain trainer to "
                "test or predict"
            )
        if type(self.precision_plugin) not in (Precision, PlannedPrecision):
            raise UsageError(
                f"precision {self.precision_plugin.precision} is not known under a plan; take 32-true"
            )
        if self._planned is None:
            self._planned = self._cut(trainer)
        self.precision_plugin = PlannedPrecision(self._planned)
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Nothing is wrapped: the pipeline sums gradients."""

    def model_to_device(self) -> None:
        """Nothing moves: this rank's stages are on its device already."""

    def setup_optimizers(self, trainer: Any) -> None:
        """As Lightning's, and each optimizer's state can be gathered."""
        super().setup_optimizers(trainer)
        self._wholes = {id(one): WholeOptimizer(one) for one in self.optimizers}

    def backward(
        self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Hand out the gradients that wait. Raises UsageError for another loss than the model's."""
        apart = (
            1.0
            if self._loss is None
            else abs(float(closure_loss) / float(self._loss * self.planned.scale) - 1)
        )
        if apart > _CLOSE:
            raise UsageError(
                "training_step returns another loss than the model did, and the pipeline has run its backward "
                "already; return the model's loss, and put factors and further terms into the model"
            )
        for parameter, gradient in self._waiting.items():
            parameter.grad = gradient
        self._waiting, self._loss = {}, None
        return closure_loss

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """As Lightning's. Its gradients end with it, before the next call of the model."""
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        self.planned.module.zero_grad()
        return result

    @contextmanager
    def block_backward_sync(self) -> Generator[None]:
        """Inside, gradients of accumulated batches are not summed over ranks yet."""
        self.planned.sync = False
        try:
            yield
        finally:
            self.planned.sync = True

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The value itself: every rank has the same."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Rank 0's decision, for example on the time."""
        return self.broadcast(decision)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole module's state on rank 0; empty on others. Collective over all ranks."""
        whole = self.planned.whole_state()
        if not self.is_global_zero:
            return {}
        state = super().lightning_module_state_dict()
        return {name: whole.get(self._inner(name), tensor) for name, tensor in state.items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole state on rank 0; empty on others. Collective over all ranks."""
        inner = getattr(optimizer, "optimizer", optimizer)
        self._wholes[id(inner)].collect()
        return inner.state_dict() if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes the state of its own parameters."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank takes its own part of the whole state."""
        if self._planned is None:
            super().load_model_state_dict(checkpoint, strict)
            return
        state = checkpoint["state_dict"]
        inner = {self._inner(name): tensor for name, tensor in state.items() if self._inner(name)}
        self._planned.module.load_state_dict(inner, strict)

    def _inner(self, name: str) -> str:
        """A tensor's name in the model of the plan; empty for one outside it."""
        prefix = f"{self._attribute}."
        return name.removeprefix(prefix) if name.startswith(prefix) else ""

    def _cut(self, trainer: Any) -> PlannedModel:
        model = getattr(self.lightning_module, self._attribute, None)
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"the LightningModule has no module '{self._attribute}'; name the one that the plan cuts: "
                "PipelineStrategy(plan, example, model='…')"
            )
        others = [n for n, _ in self.lightning_module.named_parameters() if not self._inner(n)]
        if others:
            raise UsageError(
                f"'{others[0]}' is outside '{self._attribute}', and the plan places the parameters of that "
                "module only; move it inside, or freeze it as a buffer"
            )
        planned = PlannedModel(self._plan, model, self._example, device=self.root_device)
        planned.scale = 1.0 / trainer.accumulate_grad_batches
        run = model.forward

        def forward(*args: Any, **inputs: Any) -> Any:
            output = run(*args, **inputs)
            if model.training:
                self._loss = output.loss
                own = [p for p in model.parameters() if p.grad is not None]
                self._waiting = {p: p.grad for p in own if p.grad is not None}
                for parameter in own:
                    parameter.grad = None
            return output

        model.forward = forward
        return planned


class PlannedPrecision(Precision):
    """Full precision, with gradients clipped by the norm of the whole model."""

    def __init__(self, planned: PlannedModel) -> None:
        self._planned = planned

    def clip_grad_by_norm(self, optimizer: Any, clip_val: float) -> None:
        """Clip by the norm over all ranks. Collective."""
        self._planned.pipeline.clip_gradients(float(clip_val))
