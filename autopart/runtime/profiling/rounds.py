"""Rounds of measurement, in which the layers and the whole model take turns.

One round is a segmented step with whole backwards, a step of the whole model, and a segmented step
with input gradients alone. A machine that becomes slower during the measurement slows all three,
so that their ratios stay true.

Starting autograd for one layer costs about 20 µs on a CPU, once a layer here and once a stage in a
run, where the cluster's cost of an action covers it. A layer that does nothing is measured in each
round, and its times are taken off the others'.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import get_gradient_edge

from autopart.runtime.profiling.segments import (
    BackwardCall,
    ForwardCall,
    Outputs,
    Segments,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.timing import Reading, Stopwatch
from autopart.runtime.profiling.whole_model import StepReadings


@dataclass(slots=True)
class LayerReadings:
    """One segmented step; layers that were not called have no reading."""

    forward: dict[int, Reading] = field(default_factory=dict[int, Reading])
    backward: dict[int, Reading] = field(default_factory=dict[int, Reading])


class LayerTimes(NamedTuple):
    """Seconds of one layer in one round."""

    forward: float
    backward: float
    """The whole backward, input and weight gradients."""
    input_grad: float
    """The input gradient alone, no more than the whole backward."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round measured."""

    layers: tuple[LayerTimes, ...]
    whole_forward: float
    whole_backward: float


_IDLE_REPEATS = 5
_NONE = LayerTimes(0.0, 0.0, 0.0)


def measure_layers(segments: Segments, stopwatch: Stopwatch, *, whole: bool) -> LayerReadings:
    """One segmented step, with whole backwards or with input gradients alone."""
    readings = LayerReadings()

    def around_forward(call: ForwardCall) -> Outputs:
        outputs, readings.forward[call.index] = stopwatch.measure(call.run)
        return outputs

    def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
        gradients, readings.backward[call.index] = stopwatch.measure(call.run)
        return gradients

    tape = run_forward(segments, around_forward)
    run_backward(segments, tape, around_backward, whole=whole)
    return readings


def measure_round(
    segments: Segments, whole_step: Callable[[], StepReadings], stopwatch: Stopwatch
) -> Round:
    """One round on a device; `whole_step` runs the whole model.

    The times of a layer that does nothing are taken off on a CPU, where they are part of every
    layer's, but not on a GPU, which has work queued while the host starts autograd.
    """
    backwards = measure_layers(segments, stopwatch, whole=True)
    whole = whole_step()
    inputs = measure_layers(segments, stopwatch, whole=False)
    off = _measure_idle(stopwatch) if stopwatch.counts_host_work else _NONE
    stopwatch.settle()
    return Round(
        layers=_resolve(segments, backwards, inputs, off),
        whole_forward=whole.forward(),
        whole_backward=whole.backward(),
    )


def _measure_idle(stopwatch: Stopwatch) -> LayerTimes:
    """A layer that hands on what it received: the median of several."""
    samples: list[LayerTimes] = []
    for _ in range(_IDLE_REPEATS):
        leaf, gradients = torch.zeros((), requires_grad=True), [torch.ones(())]
        edges: Any = [get_gradient_edge(leaf)]
        _, forward = stopwatch.measure(lambda: ())
        _, backward = stopwatch.measure(partial(torch.autograd.backward, edges, gradients))
        _, inward = stopwatch.measure(partial(torch.autograd.grad, edges, [leaf], gradients))
        stopwatch.settle()
        samples.append(LayerTimes(forward(), backward(), inward()))
    return LayerTimes(*(statistics.median(column) for column in zip(*samples, strict=True)))


def _resolve(
    segments: Segments, backwards: LayerReadings, inputs: LayerReadings, off: LayerTimes
) -> tuple[LayerTimes, ...]:
    """The times of each layer, less those of one that does nothing.

    A layer without trained parameters does nothing in backward but its input gradient; a layer
    without anyone to hand a gradient to has none.
    """
    result: list[LayerTimes] = []
    for index, layer in enumerate(segments.layers):
        forward = max(0.0, backwards.forward[index]() - off.forward)
        backward = _seconds(backwards.backward, index, off.backward)
        inward = _seconds(inputs.backward, index, off.input_grad) if layer.trained else backward
        result.append(LayerTimes(forward, backward, min(inward, backward)))
    return tuple(result)


def _seconds(readings: Mapping[int, Reading], index: int, off: float) -> float:
    return max(0.0, readings[index]() - off) if index in readings else 0.0
