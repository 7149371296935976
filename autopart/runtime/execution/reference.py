"""The plain model on one process: what the pipeline is checked against."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from autopart.runtime.capture.autocast import autocast_of, entered
from autopart.runtime.execution.dropout import DropNothing
from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.execution.weight_history import Version, WeightHistory
from autopart.runtime.models.attributes import user_name
from autopart.runtime.models.model import Batch, TrainingModel

Tensors = Mapping[str, torch.Tensor]
"""Tensors by the user's own names."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the plain model computed, on the CPU."""

    losses: tuple[float, ...]
    """The mean loss of each step's batch."""
    loss_dtype: torch.dtype
    gradients: Tensors
    """Of the first step; a parameter that has none is missing."""
    start: Tensors
    """The parameters before the first step,"""
    first: Tensors
    """after it,"""
    last: Tensors
    """and after the last one."""
    buffers: Tensors
    """After the last step."""


def run_reference(
    model: TrainingModel,
    microbatch: Callable[[int, int], Batch],
    *,
    steps: int,
    num_microbatches: int,
    optimizer: Callable[[list[torch.nn.Parameter]], Optimizer],
    note: Callable[[str], None],
    autocast: torch.dtype | None = None,
    version: Version | None = None,
) -> Reference:
    """Train the user's own module as anybody would: gradients of all microbatches added up, each
    loss divided by their number, then a step. `microbatch(step, m)` gives each one. With `version` a
    microbatch, counted through the run, meets weights of before."""
    parameters = {user_name(name): p for name, p in model.named_parameters()}
    stepper = optimizer(list(parameters.values()))
    history = None if version is None else WeightHistory(parameters, version)
    losses: list[float] = []
    under = autocast_of(model, autocast)
    loss_dtype = torch.float32
    start = copies(parameters)
    gradients, first = dict[str, torch.Tensor](), start
    for step in range(steps):
        total = 0.0
        for m in range(num_microbatches):
            note(f"the plain model's microbatch {m} of step {step + 1}")
            inputs, target = microbatch(step, m)
            number = step * num_microbatches + m
            with nullcontext() if history is None else history.met_by(number):
                with DropNothing(), entered(under):
                    loss = model(inputs, target) / num_microbatches
                loss.backward()
            total += loss.item()
            loss_dtype = loss.dtype
        losses.append(total)
        if step == 0:
            gradients = copies({n: p.grad for n, p in parameters.items() if p.grad is not None})
        stepper.step()
        if step == 0:
            first = copies(parameters)
        if history is not None:
            history.updated((step + 1) * num_microbatches)
    return Reference(
        losses=tuple(losses),
        loss_dtype=loss_dtype,
        gradients=gradients,
        start=start,
        first=first,
        last=first if steps == 1 else copies(parameters),
        buffers=copies({user_name(name): buffer for name, buffer in model.named_buffers()}),
    )


def copies(tensors: Tensors) -> dict[str, torch.Tensor]:
    """On the CPU, whatever becomes of the tensors."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
