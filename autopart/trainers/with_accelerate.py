"""An `Accelerator` whose processes are the ranks of a plan, in place of replicas of the whole model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.trainers.needed import needed
from autopart.trainers.planned_model import PlannedModel
from autopart.trainers.whole_optimizer import WholeOptimizer, numbered, renew

with needed("accelerate"):
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType

Example = Mapping[str, Any]
"""A batch, by the names with which the model is called."""


class PipelineAccelerator(Accelerator):
    """Accelerate's `Accelerator` under a plan. Every rank reads the same data.

    `prepare` cuts the model. A call of the model in train mode runs forward and backward, and
    `backward` takes the loss unchanged. Files of `save_state` have the whole model's tensors, by its
    names, and load under any plan.
    """

    def __init__(
        self,
        plan: Plan,
        example: Example | Callable[[], Example],
        **keywords: Any,
    ) -> None:
        """`example` is a batch, of which the first microbatch is taken, or a function that gives one.

        `keywords` are those of `Accelerator`. Raises UsageError for fp16, and for other ways to divide
        the model.
        """
        super().__init__(**keywords)
        self._plan, self._example = plan, example
        self.evaluates = True
        """Whether the model can be called in eval mode; `prepare` captures it for that too."""
        self._planned: PlannedModel | None = None
        self._wholes: list[WholeOptimizer] = []
        self._loss: torch.Tensor | None = None
        self._before: dict[int, list[list[str | None]]] = {}
        """The names of parameters in optimizers that are being prepared."""
        if self.mixed_precision not in ("no", "bf16"):
            raise UsageError(
                f"mixed_precision {self.mixed_precision} needs a loss scaler, which a planned model does not "
                "have here; take bf16 or no, or make_pipeline in a loop of your own"
            )
        if self.distributed_type in (
            DistributedType.DEEPSPEED,
            DistributedType.FSDP,
            DistributedType.MEGATRON_LM,
        ):
            raise UsageError(
                f"{self.distributed_type.value} divides the model itself; leave it out, the plan does so"
            )
        self.register_save_state_pre_hook(lambda *_: self.collect_optimizers())

    @property
    def num_processes(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Processes that read data of their own: one, because all ranks read the same."""
        return 1

    @property
    def is_planned(self) -> bool:
        """Whether a model is prepared."""
        return self._planned is not None

    @property
    def planned(self) -> PlannedModel:
        """The prepared model's part on this rank. Raises UsageError before `prepare`."""
        if self._planned is None:
            raise UsageError("no model is prepared yet; call prepare(model, optimizer, …) first")
        return self._planned

    def prepare(self, *args: Any, device_placement: list[bool] | None = None) -> Any:
        """As accelerate's; an optimizer may be made before, over the whole model's parameters."""
        models = [one for one in args if isinstance(one, nn.Module)]
        if self._planned is not None:
            models.append(self._planned.module)
        optimizers = [one for one in args if isinstance(one, torch.optim.Optimizer)]
        self._before = {id(one): numbered(one, models[0]) for one in optimizers if models}
        return super().prepare(*args, device_placement=device_placement)

    def prepare_model(
        self,
        model: nn.Module,
        device_placement: bool | None = None,
        evaluation_mode: bool = False,
    ) -> nn.Module:
        """Cut the model under the plan; it stays the same object. Collective over all ranks."""
        if self._planned is not None and self._planned.module is not model:
            raise UsageError("a plan is for one model, and another one is prepared already")
        prepared = super().prepare_model(model, device_placement=False, evaluation_mode=True)
        if prepared is not model:
            raise UsageError(
                "a planned model cannot be compiled as a whole; leave torch.compile out"
            )
        if self._planned is None:
            example = self._example() if callable(self._example) else self._example
            self._planned = PlannedModel(
                self._plan,
                model,
                example,
                device=self.device,
                autocast=torch.bfloat16 if self.mixed_precision == "bf16" else None,
                evaluates=self.evaluates,
            )
            run = model.forward

            def forward(*args: Any, **inputs: Any) -> Any:
                planned = self.planned
                planned.scale = 1.0 / self.gradient_accumulation_steps
                planned.sync = self.sync_gradients
                output = run(*args, **inputs)
                self._loss = output.loss
                return output

            model.forward = forward
        return model

    def prepare_optimizer(
        self, optimizer: torch.optim.Optimizer, device_placement: bool | None = None
    ) -> AcceleratedOptimizer:
        """As accelerate's. Its `state_dict` is whole on rank 0 after `collect_optimizers`."""
        inner = getattr(optimizer, "optimizer", optimizer)  # the trainer may prepare it again
        if id(optimizer) in self._before:
            renew(inner, self.planned.module, self._before[id(optimizer)])
        self._wholes.append(WholeOptimizer(inner))
        prepared: Any = super().prepare_optimizer(optimizer, device_placement=device_placement)
        return prepared

    def prepare_data_loader(
        self,
        data_loader: Any,
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Any = None,
    ) -> Any:
        """The same batches on every rank."""
        if getattr(data_loader, "_is_accelerate_prepared", False):
            return super().prepare_data_loader(data_loader, device_placement, slice_fn_for_dispatch)
        kinds: Any = list(self.rng_types or [])
        prepared = prepare_data_loader(
            data_loader,
            self.device,
            num_processes=1,
            process_index=0,
            put_on_device=self.device_placement if device_placement is None else device_placement,
            rng_types=kinds,
            dispatch_batches=False,
            use_seedable_sampler=self.use_seedable_sampler,
            data_seed=self.dataloader_config.data_seed,
            non_blocking=self.non_blocking,
            use_stateful_dataloader=self.use_stateful_dataloader,
        )
        self._dataloaders.append(prepared)
        return prepared

    def prepare_scheduler(self, scheduler: Any) -> Any:
        """As accelerate's, with one step of the schedule per step of the optimizer."""
        prepared: Any = super().prepare_scheduler(scheduler)
        prepared.split_batches = True
        return prepared

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Nothing is left to do: the call of the model has made the gradients of this loss."""
        if loss is not self._loss:
            raise UsageError(
                "backward takes the loss that the model returned, unchanged: the pipeline has run its backward "
                "already; put factors and further terms into the model"
            )

    def clip_grad_norm_(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2
    ) -> torch.Tensor:
        """Clip by the whole model's norm, over all ranks. Returns the norm before. Collective."""
        if norm_type != 2:
            raise UsageError(f"clipping under a plan knows norm_type 2 only, not {norm_type}")
        return self.planned.pipeline.clip_gradients(float(max_norm))

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Clip each element of the gradients."""
        own = [p for p in self.planned.module.parameters() if p.grad is not None]
        nn.utils.clip_grad_value_(own, clip_value)

    def gather(self, tensor: Any) -> Any:
        """The tensor itself: every rank reads the same data."""
        return tensor

    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> dict[str, torch.Tensor]:
        """The whole model's state on rank 0; empty on others. Collective over all ranks."""
        return self.planned.whole_state()

    def free_memory(self, *objects: Any) -> Any:
        """As accelerate's; the model stays cut."""
        self._wholes = []
        return super().free_memory(*objects)

    def collect_optimizers(self) -> None:
        """Bring the state of all ranks' optimizers to rank 0, for its next `state_dict`. Collective."""
        for whole in self._wholes:
            whole.collect()
