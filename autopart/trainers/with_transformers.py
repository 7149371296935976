"""Hugging Face's `Trainer` under a plan: the same arguments, callbacks, logs and checkpoints."""

import copy
import os
from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import distributed, nn

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.text import counted
from autopart.trainers.needed import needed
from autopart.trainers.planned_model import check_trainable

with needed("transformers"):
    from transformers import Trainer, TrainingArguments

with needed("accelerate"):
    from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

    from autopart.trainers.with_accelerate import PipelineAccelerator

_REFUSED = {
    "fp16": "fp16 needs a loss scaler; take bf16",
    "fp16_full_eval": "evaluation runs in the plan's dtype",
    "bf16_full_eval": "evaluation runs in the plan's dtype",
    "torch_compile": "the plan's stages are not compiled",
    "deepspeed": "the plan divides the model",
    "fsdp": "the plan divides the model",
    "activation_checkpointing": "the plan says which layers are recomputed; solve with --recompute auto",
    "gradient_checkpointing": "the plan says which layers are recomputed; solve with --recompute auto",
    "auto_find_batch_size": "the plan has the batch size",
    "label_smoothing_factor": "the loss is made inside the model",
    "neftune_noise_alpha": "hooks of the embedding are not run by the stages",
    "use_liger_kernel": "the plan was made from the model's own layers",
}
"""Arguments that must be off, and why."""

_UNKNOWN = {
    "compute_metrics": "logits are on the last rank only; take the loss, or evaluate a saved model",
    "compute_loss_func": "the loss is made inside the model",
    "preprocess_logits_for_metrics": "logits are on the last rank only",
    "model_init": "the plan is for one model",
}
"""Keywords of `Trainer` that a planned model cannot follow, and why."""


class PipelineTrainer(Trainer):
    """`Trainer` whose processes are the ranks of a plan. Every rank reads the same data.

    Start the script with torchrun, one process per rank. Checkpoints are those of the plain `Trainer`:
    either continues from the other's, and a plan from another plan's.
    """

    accelerator: PipelineAccelerator  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, plan: Plan, model: nn.Module, args: TrainingArguments, **keywords: Any
    ) -> None:
        """`model` has equal weights on every rank; `keywords` are those of `Trainer`.

        Raises UsageError, in one line, for arguments that a planned model cannot follow, and PlanError
        for a plan that a trainer cannot run.
        """
        _ = args.device  # it starts the process group
        check_trainable(plan)
        _check(plan, args, keywords)
        self._plan = plan
        own = copy.copy(args)
        # All ranks see the same tokens, so their number is no sum over ranks.
        own.average_tokens_across_devices = False
        # The plan was made from the model as it is; the trainer would turn its cache off.
        own.use_cache = getattr(getattr(model, "config", None), "use_cache", own.use_cache)
        super().__init__(model=model, args=own, **keywords)
        if own.output_dir:
            # `Trainer` makes it on rank 0 alone; the others look into it for a checkpoint.
            os.makedirs(own.output_dir, exist_ok=True)
        self.accelerator.evaluates = self.eval_dataset is not None

    def create_accelerator_and_postprocess(self) -> None:
        """Make the trainer's accelerator, which cuts the model when training or evaluation starts."""
        super().create_accelerator_and_postprocess()
        settings: Any = self.args.accelerator_config
        seed: Any = self.args.data_seed
        accumulation: dict[str, Any] = {
            **(settings.gradient_accumulation_kwargs or {}),
            "num_steps": 1,
        }
        self.accelerator = PipelineAccelerator(
            self._plan,
            self._example,
            mixed_precision=self.args.mixed_precision,
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=settings.use_seedable_sampler,
                data_seed=seed,
                non_blocking=settings.non_blocking,
            ),
            gradient_accumulation_plugin=GradientAccumulationPlugin(**accumulation),
        )
        self.gather_function = self.accelerator.gather_for_metrics

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of one batch in the pipeline. Collective over all ranks."""
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        planned = self.accelerator.planned
        total = num_items_in_batch if self.model_accepts_loss_kwargs else None
        # With a number of items the loss is a share of the mean over all accumulated batches.
        planned.scale = 1.0 if total is not None else 1.0 / self.current_gradient_accumulation_steps
        planned.sync = self.accelerator.sync_gradients
        loss = planned.train_step(
            self._prepare_inputs(inputs), None if total is None else float(total)
        )
        return loss * planned.scale

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, None, None]:
        """The loss of one batch. Raises UsageError where predictions are asked for."""
        if not prediction_loss_only:
            raise UsageError(f"no predictions under a plan: {_UNKNOWN['compute_metrics']}")
        total = None
        if self.model_accepts_loss_kwargs:
            total = self.get_batch_samples(iter([inputs]), 1, self.args.device)[1]
        loss = self.accelerator.planned.evaluate(
            self._prepare_inputs(inputs), None if total is None else float(total)
        )
        return loss, None, None

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Samples per step of the optimizer: ranks do not multiply them."""
        return args.train_batch_size * args.gradient_accumulation_steps

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model, gathered on rank 0. Collective over all ranks."""
        if not self.accelerator.is_planned:
            super().save_model(output_dir, _internal_call)
            return
        planned = self.accelerator.planned
        state = planned.whole_state()
        if _internal_call and not self.args.save_only_model:
            self.accelerator.collect_optimizers()  # the trainer saves their state next
        with planned.holding(state):
            super().save_model(output_dir, _internal_call)
        distributed.barrier()  # other ranks may load the best model's weights next

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """The whole model stays where it is; only this rank's stages move to the device."""

    def _example(self) -> dict[str, Any]:
        """The first microbatch of the data. Generators stay as they were."""
        dataset: Any = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()))
        size = self._plan.microbatch_size
        with torch.random.fork_rng():
            if hasattr(dataset, "__getitem__"):
                return self.data_collator([dataset[i] for i in range(size)])
            return self.data_collator([one for _, one in zip(range(size), dataset, strict=False)])


def _check(plan: Plan, args: TrainingArguments, keywords: Mapping[str, Any]) -> None:
    for name, why in _REFUSED.items():
        if getattr(args, name, None):
            raise UsageError(f"{name} cannot be set under a plan: {why}")
    for name, why in _UNKNOWN.items():
        if keywords.get(name) is not None:
            raise UsageError(f"{name} cannot be given with a plan: {why}")
    batch = plan.microbatch_size * plan.num_microbatches
    if args.per_device_train_batch_size != batch:
        raise UsageError(
            f"the plan's batch has {counted(batch, 'sample')} ({counted(plan.num_microbatches, 'microbatch')} of "
            f"{plan.microbatch_size}), over all ranks; set per_device_train_batch_size={batch} in place of "
            f"{args.per_device_train_batch_size}"
        )
    if keywords.get("eval_dataset") is not None and args.per_device_eval_batch_size > batch:
        raise UsageError(
            f"the plan runs at most {counted(batch, 'sample')} at once; set per_device_eval_batch_size={batch} in place "
            f"of {args.per_device_eval_batch_size}"
        )
    dataset = keywords.get("train_dataset")
    if isinstance(dataset, Sized) and not args.dataloader_drop_last and len(dataset) % batch:
        raise UsageError(
            f"{counted(len(dataset), 'sample')} do not divide into batches of {batch}, and every batch must be whole; set "
            "dataloader_drop_last=True"
        )
