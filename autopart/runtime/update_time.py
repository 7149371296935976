"""How long the optimizer's step over a layer's parameters takes."""

from collections.abc import Sequence

import torch

from autopart.runtime.timing import Stopwatch, Summary, summarize


def measure_update(
    parameters: Sequence[torch.nn.Parameter], stopwatch: Stopwatch, repeats: int
) -> Summary:
    """Seconds of a step of `torch.optim.AdamW`, as torch runs it by default on the device.

    The parameters must have gradients. They are not changed: the learning rate is 0, which costs
    the same. The first step makes the optimizer's state and is not counted.
    """
    trained = [p for p in parameters if p.requires_grad and p.grad is not None]
    if not trained:
        return Summary(0.0, 0.0)
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    optimizer.step()
    readings = [stopwatch.measure(optimizer.step)[1] for _ in range(max(1, repeats))]
    stopwatch.settle()
    return summarize([reading() for reading in readings])
