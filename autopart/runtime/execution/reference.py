"""The plain model on one process: what the pipeline is checked against."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from autopart.runtime.capture.autocast import autocast_of, entered
from autopart.runtime.execution.dropout import DropNothing
from autopart.runtime.execution.optimizer import Optimizer
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
) -> Reference:
    """Train the user's own module as anybody would: gradients of all microbatches added up, each
    loss divided by their number, then a step. `microbatch(step, m)` gives each one."""
    parameters = {user_name(name): p for name, p in model.named_parameters()}
    stepper = optimizer(list(parameters.values()))
    losses: list[float] = []
    under = autocast_of(model, autocast)
    loss_dtype = torch.float32
    start = _copies(parameters)
    gradients, first = dict[str, torch.Tensor](), start
    for step in range(steps):
        total = 0.0
        for m in range(num_microbatches):
            note(f"the plain model's microbatch {m} of step {step + 1}")
            inputs, target = microbatch(step, m)
            with DropNothing(), entered(under):
                loss = model(inputs, target) / num_microbatches
            loss.backward()
            total += loss.item()
            loss_dtype = loss.dtype
        losses.append(total)
        if step > 0:
            stepper.step()
            continue
        gradients = _copies({n: p.grad for n, p in parameters.items() if p.grad is not None})
        stepper.step()
        first = _copies(parameters)
    return Reference(
        losses=tuple(losses),
        loss_dtype=loss_dtype,
        gradients=gradients,
        start=start,
        first=first,
        last=first if steps == 1 else _copies(parameters),
        buffers=_copies({user_name(name): buffer for name, buffer in model.named_buffers()}),
    )


def _copies(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
