"""Runs one microbatch through all stages of an export, in one process."""

import importlib
from types import ModuleType
from typing import Any

import torch

from autopart.runtime.models.model import TrainingModel


def cut(pipeline: ModuleType, training: TrainingModel, batch: Any) -> list[Any]:
    """The stages of an imported export."""
    return pipeline.cut_model(training.model, training.loss_fn, batch, torch.device("cpu"))


def run_chain(pipeline: ModuleType, training: TrainingModel, batch: Any) -> torch.Tensor:
    """Run one microbatch forward and backward through all stages."""
    return run_stages(cut(pipeline, training, batch), batch)


def run_stages(stages: list[Any], batch: Any) -> torch.Tensor:
    """Run one microbatch forward and backward through stages of the last imported export."""
    leaves = importlib.import_module("pipeline_capture").leaves_of(batch)
    outputs: Any = ()
    ran: list[tuple[Any, Any]] = []
    for stage in stages:
        received = tuple(out.detach().requires_grad_(out.requires_grad) for out in outputs)
        for tensor, example in zip(received, stage.received_examples, strict=True):
            assert (tensor.shape, tensor.dtype) == (example.shape, example.dtype)
            assert tensor.requires_grad == example.requires_grad
        outputs = stage(*received, **{n: leaves[place][None] for n, place in stage.leaves.items()})
        ran.append((received, outputs))
    loss, gradients = outputs, [torch.ones(1)]
    ran[-1] = (ran[-1][0], (loss,))
    for received, outputs in reversed(ran):
        given = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in given], [g for _, g in given])
        gradients = [tensor.grad for tensor in received]
    return loss.sum()
