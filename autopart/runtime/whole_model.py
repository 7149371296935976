"""The user's model run as one: what the sum of its layers is held against."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from autopart.runtime.model import Batch, TrainingModel
from autopart.runtime.stash import SavedStorages, storage_keys
from autopart.runtime.timing import Reading, Stopwatch


class StepReadings(NamedTuple):
    """One forward and one backward of the whole model."""

    forward: Reading
    backward: Reading


def run_step(model: TrainingModel, batch: Batch, stopwatch: Stopwatch) -> StepReadings:
    """One microbatch through the whole model; gradients are added to those already there."""
    loss, forward = stopwatch.measure(_forward(model, batch))
    _, backward = stopwatch.measure(loss.backward)
    return StepReadings(forward, backward)


def held_bytes(model: TrainingModel, batch: Batch, state: Iterable[torch.Tensor]) -> int:
    """Bytes that autograd really holds after a forward of the whole model.

    `state` (parameters, buffers, inputs of the batch) does not count.
    """
    known = storage_keys(state)
    with SavedStorages() as saved:
        loss = _forward(model, batch)()
    held = sum(size for key, size in saved.held().items() if key not in known)
    # The graph, and with it what it holds, lives until here.
    del loss
    return held


def _forward(model: TrainingModel, batch: Batch) -> Callable[[], torch.Tensor]:
    inputs, target = batch
    return lambda: model(inputs, target)
