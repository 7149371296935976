"""Seconds for the optimizer step over a layer's parameters."""

from collections.abc import Sequence

import torch

from autopart.runtime.measuring.stopwatch import Stopwatch, summarize
from autopart.runtime.update.optimizer import Optimizer


def measure_update(
    parameters: Sequence[torch.nn.Parameter], stopwatch: Stopwatch, repeats: int
) -> float:
    """Return the median seconds over `repeats` AdamW steps on these parameters, as in a run.

    Gradients must exist, and exist again afterwards. Parameters do not change: the learning rate is
    0, which costs the same. The first step creates the optimizer's state and does not count.
    """
    gradients = {p: p.grad for p in parameters if p.requires_grad and p.grad is not None}
    if not gradients:
        return 0.0
    optimizer = Optimizer("adamw", tuple(gradients), lr=0.0)
    samples: list[float] = []
    for _ in range(repeats + 1):
        _, reading = stopwatch.measure(optimizer.step)
        stopwatch.settle()
        samples.append(reading())
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
    return summarize(samples[1:]).median
