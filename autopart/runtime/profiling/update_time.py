"""How long the optimizer's step over a layer's parameters takes."""

from collections.abc import Sequence

import torch

from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.profiling.timing import Stopwatch, summarize


def measure_update(
    parameters: Sequence[torch.nn.Parameter], stopwatch: Stopwatch, repeats: int
) -> float:
    """Seconds of the step of AdamW that a run makes over these parameters, the median of `repeats`.

    Their gradients must be there and are there again afterwards. The parameters are not changed:
    the learning rate is 0, which costs the same. The first step, which makes the optimizer's
    state, does not count.
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
