"""The whole model run as one: what the sum of its layers is held against."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from autopart.errors import ModelError
from autopart.runtime.models.user_code import user_code
from autopart.runtime.profiling.stash import SavedStorages, storage_keys
from autopart.runtime.profiling.subject import Subject
from autopart.runtime.profiling.timing import Reading, Stopwatch

Forward = Callable[[], torch.Tensor]
"""Computes the loss of one microbatch."""


class StepReadings(NamedTuple):
    """One forward and one backward of the whole model."""

    forward: Reading
    backward: Reading


def own_forward(subject: Subject) -> Forward:
    """The user's model, run as the user wrote it."""
    inputs, target = subject.batch
    return lambda: subject.model(inputs, target)


def graph_forward(subject: Subject) -> Forward:
    """The captured graph, run as one."""
    return lambda: subject.captured.module(*subject.leaves)


def runnable_forward(subject: Subject) -> tuple[Forward, tuple[str, ...]]:
    """The user's model or, where that does not run on tensors without memory, the captured graph;
    and a warning that says so."""
    forward = own_forward(subject)
    try:
        with user_code(f"{subject.model.name}: the model"):
            forward()
    except ModelError as error:
        note = f"the layers are held against the captured graph: on meta tensors, {error}"
        return graph_forward(subject), (note,)
    return forward, ()


def run_step(forward: Forward, stopwatch: Stopwatch) -> StepReadings:
    """One microbatch through the whole model; gradients are added to those already there."""
    loss, forward_reading = stopwatch.measure(forward)
    _, backward_reading = stopwatch.measure(loss.backward)
    return StepReadings(forward_reading, backward_reading)


def held_bytes(forward: Forward, state: Iterable[torch.Tensor]) -> int:
    """Bytes that autograd really holds after a forward of the whole model.

    `state` (parameters, buffers, inputs of the batch) does not count.
    """
    known = storage_keys(state)
    with SavedStorages() as saved:
        loss = forward()
    held = sum(size for key, size in saved.held().items() if key not in known)
    # The graph, and with it what it holds, lives until here.
    del loss
    return held
