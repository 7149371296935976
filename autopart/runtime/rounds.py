"""Rounds of measurement, in which the layers and the whole model take turns.

One round is a segmented step with whole backwards, a step of the whole model, and a segmented step
with input gradients alone. A machine that becomes slower during the measurement slows all three,
so that their ratios stay true.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from autopart.runtime.segments import (
    BackwardCall,
    ForwardCall,
    Outputs,
    Segments,
    run_backward,
    run_forward,
)
from autopart.runtime.timing import Reading, Stopwatch
from autopart.runtime.whole_model import StepReadings


@dataclass(slots=True)
class LayerReadings:
    """One segmented step; layers that were not called have no reading."""

    forward: dict[int, Reading] = field(default_factory=dict[int, Reading])
    backward: dict[int, Reading] = field(default_factory=dict[int, Reading])


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Seconds of one layer in one round."""

    forward: float
    input_grad: float
    weight_grad: float
    """Whole backward less input gradient, never negative."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round measured."""

    layers: tuple[LayerTimes, ...]
    whole_forward: float
    whole_backward: float


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
    """One round on a device; `whole_step` runs the whole model."""
    backwards = measure_layers(segments, stopwatch, whole=True)
    whole = whole_step()
    inputs = measure_layers(segments, stopwatch, whole=False)
    stopwatch.settle()
    return Round(
        layers=resolve(segments, backwards, inputs),
        whole_forward=whole.forward(),
        whole_backward=whole.backward(),
    )


def resolve(
    segments: Segments, backwards: LayerReadings, inputs: LayerReadings
) -> tuple[LayerTimes, ...]:
    """The times of each layer from a step with whole backwards and one with input gradients.

    A layer without trained parameters does nothing in backward but its input gradient; a layer
    without anyone to hand a gradient to has none.
    """
    return tuple(
        _layer_times(
            backwards.forward[index](),
            _seconds(backwards, index),
            _seconds(inputs, index),
            trained=layer.trained,
        )
        for index, layer in enumerate(segments.layers)
    )


def _seconds(readings: LayerReadings, index: int) -> float:
    reading = readings.backward.get(index)
    return reading() if reading is not None else 0.0


def _layer_times(
    forward: float, backward: float, input_grad: float, *, trained: bool
) -> LayerTimes:
    if not trained:
        return LayerTimes(forward, backward, 0.0)
    return LayerTimes(forward, min(input_grad, backward), max(0.0, backward - input_grad))
