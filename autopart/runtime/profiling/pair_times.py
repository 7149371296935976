"""Seconds for a layer's forward beside its backward, as in an overlapped pair.

All forwards run in order. Then each layer's backward runs with the layer's forward once more beside
it, in reverse order. Both belong to one layer, as if for two microbatches. A layer whose forward
changes a buffer is left out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from autopart.runtime.measuring.stopwatch import PendingTime, Stopwatch
from autopart.runtime.profiling.layer_by_layer import (
    BackwardCall,
    ForwardCall,
    LayerPrograms,
    Outputs,
    run_backward,
    run_forward,
)


def measure_pairs(
    programs: LayerPrograms, places: Collection[int], stopwatch: Stopwatch, repeats: int
) -> Mapping[int, tuple[float, ...]]:
    """Seconds of pairs in each of so many runs, for the layers at `places` that have a backward."""
    found: dict[int, list[float]] = {}
    for _ in range(repeats):
        for place, seconds in _measure_once(programs, places, stopwatch).items():
            found.setdefault(place, []).append(seconds)
    return {place: tuple(seconds) for place, seconds in found.items()}


def _measure_once(
    programs: LayerPrograms, places: Collection[int], stopwatch: Stopwatch
) -> Mapping[int, float]:
    again: dict[int, Callable[[], Outputs]] = {}
    pending: dict[int, PendingTime] = {}

    def around_forward(call: ForwardCall) -> Outputs:
        if call.index in places:
            again[call.index] = call.run
        return call.run()

    def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
        forward = again.pop(call.index, None)
        if forward is None:
            return call.run()
        gradients, pending[call.index] = stopwatch.measure_together(forward, call.run)
        return gradients

    tape = run_forward(programs, around_forward)
    run_backward(programs, tape, around_backward)
    stopwatch.settle()
    return {place: seconds() for place, seconds in pending.items()}
