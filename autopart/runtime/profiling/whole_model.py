"""The whole model run at once, as the reference for the sum over its layers."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch

from autopart.errors import ModelError
from autopart.runtime.capture.checkpoints import checkpoints_left_out
from autopart.runtime.measuring.saved_tensors import SavedStorages, storage_keys
from autopart.runtime.measuring.stopwatch import PendingTime, Stopwatch
from autopart.runtime.models.user_code import user_code
from autopart.runtime.profiling.profiled_model import ProfiledModel

Forward = Callable[[], torch.Tensor]
"""Computes one microbatch's loss."""


class StepReadings(NamedTuple):
    """Times for one forward and one backward through the whole model."""

    forward: PendingTime
    backward: PendingTime


def own_forward(profiled: ProfiledModel) -> Forward:
    """Return a forward that runs the user's model, without checkpoints that the graph leaves out."""
    inputs, target = profiled.batch
    has_checkpoints = any(profiled.captured.checkpointed)

    def forward() -> torch.Tensor:
        with checkpoints_left_out() if has_checkpoints else nullcontext():
            return profiled.model(inputs, target)

    return forward


def graph_forward(profiled: ProfiledModel) -> Forward:
    """Return a forward that runs the captured graph at once."""
    return lambda: profiled.captured.module(*profiled.leaves)


def runnable_forward(profiled: ProfiledModel) -> tuple[Forward, tuple[str, ...]]:
    """Return a forward that runs on meta tensors, and a warning where it is not the user's model.

    It is the user's model or, where that fails on tensors without memory, the captured graph.
    """
    forward = own_forward(profiled)
    try:
        with user_code(f"{profiled.model.name}: the model"):
            forward()
    except ModelError as error:
        note = f"the layers are compared with the captured graph: on meta tensors, {error}"
        return graph_forward(profiled), (note,)
    return forward, ()


def run_step(forward: Forward, stopwatch: Stopwatch) -> StepReadings:
    """Run one microbatch through the whole model. Gradients are added to existing ones."""
    loss, forward_reading = stopwatch.measure(forward)
    _, backward_reading = stopwatch.measure(loss.backward)
    return StepReadings(forward_reading, backward_reading)


def saved_bytes(forward: Forward, state: Iterable[torch.Tensor]) -> int:
    """Return the bytes that autograd keeps after the whole model's forward.

    `state` (parameters, buffers, batch tensors) does not count.
    """
    known = storage_keys(state)
    with SavedStorages() as saved:
        loss = forward()
    kept = sum(size for key, size in saved.kept().items() if key not in known)
    # The autograd graph, and all tensors that it saves, must live until here.
    del loss
    return kept
