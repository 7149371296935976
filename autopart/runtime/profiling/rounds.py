"""Rounds of measurement, in which the layers and the whole model take turns.

One round is a segmented step with whole backwards, a step of the whole model, and a segmented step with
backwards in halves, as the executor runs them (runtime/execution/weight_gradients.py). A machine that becomes slower during the measurement slows all three,
so that their ratios stay true.

Starting autograd for one layer costs about 20 µs on a CPU, once a layer here and once a stage in a
run, where the cluster's cost of an action covers it. A layer that does nothing is measured in each
round, and its times are taken off the others'.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import get_gradient_edge

from autopart.runtime.execution.weight_gradients import Deed, put_off, run_put_off
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
    """Whole, or I alone."""
    weight_grad: dict[int, Reading] = field(default_factory=dict[int, Reading])
    """W, of layers whose I puts something off."""


class LayerTimes(NamedTuple):
    """Seconds of one layer in one round."""

    forward: float
    backward: float
    """The whole backward, input and weight gradients."""
    split_forward: float
    """The forward where the backward is in halves; the plain one where nothing of it can be put off."""
    input_grad: float
    """I, where the backward is in halves; the whole one where nothing can be put off."""
    weight_grad: float
    """W; 0 where nothing can be put off."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round measured."""

    layers: tuple[LayerTimes, ...]
    whole_forward: float
    whole_backward: float


_IDLE_REPEATS = 5


class _Idle(NamedTuple):
    """Seconds of a layer that does nothing."""

    forward: float
    backward: float


def measure_layers(segments: Segments, stopwatch: Stopwatch, *, halves: bool) -> LayerReadings:
    """One segmented step, with whole backwards or in halves."""
    readings = LayerReadings()

    def around_forward(call: ForwardCall) -> Outputs:
        outputs, readings.forward[call.index] = stopwatch.measure(call.run)
        return outputs

    def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
        deeds: list[Deed] = []
        with put_off(deeds) if halves else nullcontext():
            gradients, readings.backward[call.index] = stopwatch.measure(call.run)
        if deeds:
            run = partial(run_put_off, deeds)
            _, readings.weight_grad[call.index] = stopwatch.measure(run)
        return gradients

    tape = run_forward(segments, around_forward)
    run_backward(segments, tape, around_backward)
    return readings


def measure_round(
    segments: Segments,
    split: Segments,
    whole_step: Callable[[], StepReadings],
    stopwatch: Stopwatch,
) -> Round:
    """One round on a device; `split` are the layers of `segments` with backwards in halves, `whole_step` runs
    the whole model.

    The times of a layer that does nothing are taken off on a CPU, where they are part of every
    layer's, but not on a GPU, which has work queued while the host starts autograd.
    """
    plain = measure_layers(segments, stopwatch, halves=False)
    whole = whole_step()
    in_halves = measure_layers(split, stopwatch, halves=True)
    off = _measure_idle(stopwatch) if stopwatch.counts_host_work else _Idle(0.0, 0.0)
    stopwatch.settle()
    return Round(
        layers=tuple(
            _resolve(index, plain, in_halves, off) for index in range(len(segments.layers))
        ),
        whole_forward=whole.forward(),
        whole_backward=whole.backward(),
    )


def _measure_idle(stopwatch: Stopwatch) -> _Idle:
    """A layer that hands on what it received: the median of several."""
    samples: list[_Idle] = []
    for _ in range(_IDLE_REPEATS):
        leaf, gradients = torch.zeros((), requires_grad=True), [torch.ones(())]
        edges: Any = [get_gradient_edge(leaf)]
        _, forward = stopwatch.measure(lambda: ())
        _, backward = stopwatch.measure(partial(torch.autograd.backward, edges, gradients))
        stopwatch.settle()
        samples.append(_Idle(forward(), backward()))
    return _Idle(*(statistics.median(column) for column in zip(*samples, strict=True)))


def _resolve(index: int, plain: LayerReadings, in_halves: LayerReadings, off: _Idle) -> LayerTimes:
    """The times of one layer, less those of one that does nothing; where nothing is put off, halves are
    the layer's own."""
    forward = max(0.0, plain.forward[index]() - off.forward)
    backward = _seconds(plain.backward, index, off.backward)
    if index not in in_halves.weight_grad:
        return LayerTimes(forward, backward, forward, backward, 0.0)
    return LayerTimes(
        forward,
        backward,
        split_forward=max(0.0, in_halves.forward[index]() - off.forward),
        input_grad=_seconds(in_halves.backward, index, off.backward),
        weight_grad=in_halves.weight_grad[index](),
    )


def _seconds(readings: Mapping[int, Reading], index: int, off: float) -> float:
    return max(0.0, readings[index]() - off) if index in readings else 0.0
