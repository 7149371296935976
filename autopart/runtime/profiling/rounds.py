"""Rounds of measurement, in which the layers and the whole model take turns.

One round has three parts: all layers with whole backwards, the whole model, and all layers with
split backwards. The executor splits them the same (runtime/transforms/split_backward.py). A machine
that becomes slower during the measurement slows all three, so that their ratios stay true.

To start autograd for one layer costs about 20 µs on a CPU. Here each layer pays it, in a run each
stage, where the cluster's cost per action covers it. Each round therefore measures a layer that
does nothing and subtracts its times from all others.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import get_gradient_edge

from autopart.runtime.measuring.stopwatch import PendingTime, Stopwatch
from autopart.runtime.profiling.layer_by_layer import (
    BackwardCall,
    ForwardCall,
    LayerPrograms,
    Outputs,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.whole_model import StepReadings
from autopart.runtime.transforms.split_backward import DeferredWork, defer, run_deferred


@dataclass(slots=True)
class LayerReadings:
    """Readings from one step, by layer index. Layers that were not called have none."""

    forward: dict[int, PendingTime] = field(default_factory=dict[int, PendingTime])
    backward: dict[int, PendingTime] = field(default_factory=dict[int, PendingTime])
    """Whole backwards, or I alone where the step splits them."""
    weight_grad: dict[int, PendingTime] = field(default_factory=dict[int, PendingTime])
    """W, for layers with deferred work."""


class LayerTimes(NamedTuple):
    """One layer's seconds in one round."""

    forward: float
    backward: float
    """Whole backward: input and weight gradients."""
    split_forward: float
    """Forward with a split backward; equal to `forward` where the layer defers no work."""
    input_grad: float
    """I; equal to `backward` where the layer defers no work."""
    weight_grad: float
    """W; 0 where the layer defers no work."""


@dataclass(frozen=True, slots=True)
class Round:
    """Times from one round, in seconds."""

    layers: tuple[LayerTimes, ...]
    whole_forward: float
    whole_backward: float


_IDLE_REPEATS = 5


class _Idle(NamedTuple):
    """Seconds for a layer that does nothing."""

    forward: float
    backward: float


def measure_layers(programs: LayerPrograms, stopwatch: Stopwatch, *, split: bool) -> LayerReadings:
    """Run one step layer by layer and read it, with whole or with split backwards."""
    readings = LayerReadings()

    def around_forward(call: ForwardCall) -> Outputs:
        outputs, readings.forward[call.index] = stopwatch.measure(call.run)
        return outputs

    def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
        deferred: list[DeferredWork] = []
        with defer(deferred) if split else nullcontext():
            gradients, readings.backward[call.index] = stopwatch.measure(call.run)
        if deferred:
            run = partial(run_deferred, deferred)
            _, readings.weight_grad[call.index] = stopwatch.measure(run)
        return gradients

    tape = run_forward(programs, around_forward)
    run_backward(programs, tape, around_backward)
    return readings


def measure_round(
    programs: LayerPrograms,
    split: LayerPrograms,
    whole_step: Callable[[], StepReadings],
    stopwatch: Stopwatch,
) -> Round:
    """Measure one round: `programs`, the same layers with `split` backwards, and the whole model.

    On a CPU an idle layer's times are subtracted, because every layer's times contain them. A GPU
    has work queued while the host starts autograd, so nothing is subtracted there.
    """
    plain = measure_layers(programs, stopwatch, split=False)
    whole = whole_step()
    parts = measure_layers(split, stopwatch, split=True)
    idle = _measure_idle(stopwatch) if stopwatch.counts_host_work else _Idle(0.0, 0.0)
    stopwatch.settle()
    return Round(
        layers=tuple(_resolve(index, plain, parts, idle) for index in range(len(programs.layers))),
        whole_forward=whole.forward(),
        whole_backward=whole.backward(),
    )


def _measure_idle(stopwatch: Stopwatch) -> _Idle:
    """Measure a layer that returns its input: the median over several runs."""
    samples: list[_Idle] = []
    for _ in range(_IDLE_REPEATS):
        leaf, gradients = torch.zeros((), requires_grad=True), [torch.ones(())]
        edges: Any = [get_gradient_edge(leaf)]
        _, forward = stopwatch.measure(lambda: ())
        _, backward = stopwatch.measure(partial(torch.autograd.backward, edges, gradients))
        stopwatch.settle()
        samples.append(_Idle(forward(), backward()))
    return _Idle(*(statistics.median(column) for column in zip(*samples, strict=True)))


def _resolve(index: int, plain: LayerReadings, parts: LayerReadings, idle: _Idle) -> LayerTimes:
    """Return one layer's times without the idle layer's times."""
    forward = max(0.0, plain.forward[index]() - idle.forward)
    backward = _seconds(plain.backward, index, idle.backward)
    # A layer without deferred work runs the same in both steps: the plain times stand for both.
    if index not in parts.weight_grad:
        return LayerTimes(forward, backward, forward, backward, 0.0)
    return LayerTimes(
        forward,
        backward,
        split_forward=max(0.0, parts.forward[index]() - idle.forward),
        input_grad=_seconds(parts.backward, index, idle.backward),
        weight_grad=parts.weight_grad[index](),
    )


def _seconds(readings: Mapping[int, PendingTime], index: int, idle: float) -> float:
    return max(0.0, readings[index]() - idle) if index in readings else 0.0
