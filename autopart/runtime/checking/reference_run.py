"""Trains the plain model on one process, as the reference for the check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from autopart.errors import ModelError
from autopart.runtime.capture.autocast import Autocast, autocast_of, entered
from autopart.runtime.checking.dropout import DropNothing
from autopart.runtime.checking.gradient_kinds import GradientKinds, KindsOfSteps
from autopart.runtime.checking.plain_optimizer import PlainOptimizer
from autopart.runtime.checking.weight_history import History, Newest
from autopart.runtime.models.attributes import user_name
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.runtime.transforms import seeded_draws
from autopart.runtime.transforms.seeded_draws import SeededDraws

Tensors = Mapping[str, torch.Tensor]
"""Tensors by the user's names."""


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """Results from the plain model; all tensors are on the CPU."""

    losses: tuple[float, ...]
    """Mean loss per step."""
    loss_dtype: torch.dtype
    gradients: Tensors
    """Gradients in the first step, after clipping; parameters without a gradient are missing."""
    start: Tensors
    """Parameters before the first step."""
    first: Tensors
    """Parameters after the first step."""
    last: Tensors
    """Parameters after the last step."""
    buffers: Tensors
    """Buffers after the last step."""
    draws: Mapping[str, int] = field(default_factory=dict[str, int])
    """Draws of random numbers in all forwards, by operation or generator."""
    kinds: KindsOfSteps = field(default_factory=dict[str, bytes])
    """Which parameters had a gradient in each step."""


def run_reference(
    model: TrainingModel,
    microbatch: Callable[[int, int], Batch],
    *,
    steps: int,
    num_microbatches: int,
    optimizer: Callable[[list[torch.nn.Parameter]], PlainOptimizer],
    note: Callable[[str], None],
    autocast: torch.dtype | None = None,
    history: Callable[[Mapping[str, torch.nn.Parameter], PlainOptimizer], History] | None = None,
) -> ReferenceRun:
    """Train the user's module on one process.

    Each step accumulates gradients over its microbatches, with each loss divided by their number.
    `microbatch(step, m)` returns one microbatch. `history` makes the history of weights for an
    asynchronous run: microbatches run with older or predicted weights, and count through the run.
    """
    parameters = {user_name(name): p for name, p in model.named_parameters()}
    stepper, seeded = optimizer(list(parameters.values())), SeededDraws()
    past = Newest() if history is None else history(parameters, stepper)
    losses, loss_dtype = list[float](), torch.float32
    under = autocast_of(model, autocast)
    start = copies(parameters)
    gradients, first, kinds = dict[str, torch.Tensor](), start, GradientKinds()
    for step in range(steps):
        # Step 1: accumulate gradients over the microbatches.
        total = 0.0
        for m in range(num_microbatches):
            note(f"the plain model's microbatch {m} of step {step + 1}")
            batch = microbatch(step, m)
            number = step * num_microbatches + m
            with past.weights(number), seeded:
                # The pipeline's stages count microbatches in the same way.
                drawn = m if history is None else number
                loss = _forward(model, batch, drawn, num_microbatches, under)
                past.before_backward(number)
                seeded_draws.starts(drawn, is_backward=True)
                loss.backward()
            total, loss_dtype = total + loss.item(), loss.dtype
        losses.append(total)
        kinds.add(parameters)
        stepper.clip()
        if step == 0:
            gradients = copies({n: p.grad for n, p in parameters.items() if p.grad is not None})
        # Step 2: update the parameters.
        stepper.step()
        if step == 0:
            first = copies(parameters)
        past.updated((step + 1) * num_microbatches)
    return ReferenceRun(
        losses=tuple(losses),
        loss_dtype=loss_dtype,
        gradients=gradients,
        start=start,
        first=first,
        last=first if steps == 1 else copies(parameters),
        buffers=copies({user_name(name): buffer for name, buffer in model.named_buffers()}),
        draws=dict(seeded.counts),
        kinds=kinds.of_steps(),
    )


def _forward(
    model: TrainingModel, batch: Batch, number: int, num_microbatches: int, under: Autocast | None
) -> torch.Tensor:
    """Run microbatch `number` forward; return its share of the mean loss.

    Raises ModelError where no parameter has a part in the loss.
    """
    seeded_draws.starts(number)
    with DropNothing(), entered(under):
        loss = model(*batch) / num_microbatches
    if not loss.requires_grad:
        raise ModelError(
            f"the plain model's loss depends on no parameter in microbatch {number}, so it has no "
            "gradient; check on other inputs, with --seed"
        )
    return loss


def copies(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Copies on the CPU, independent of the original tensors."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
