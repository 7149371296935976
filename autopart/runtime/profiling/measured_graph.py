"""The layer graph of a model or of one rank's shards: bytes first, then times."""

from typing import NamedTuple

import torch

from autopart.records.gpu import Gpu
from autopart.records.layer_graph import LayerGraph, SplitBackward
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.measuring.stopwatch import stopwatch_of
from autopart.runtime.profiling.compiled import compiled, compiled_forward
from autopart.runtime.profiling.layer_bytes import ModelBytes, measure_layer_bytes
from autopart.runtime.profiling.layer_graph import LayerMeasurement, identical_layers, layer_graph
from autopart.runtime.profiling.model_times import (
    Effort,
    ModelTimes,
    RunAgain,
    compute_times,
    measure_times,
)
from autopart.runtime.profiling.options import ProfileOptions, kernels_asked
from autopart.runtime.profiling.profiled_model import ProfiledModel
from autopart.runtime.profiling.recompute_cost import runs_twice
from autopart.runtime.profiling.split_backward_bytes import measure_split_backwards
from autopart.runtime.profiling.whole_model import Forward, graph_forward, saved_bytes


class MeasuredBytes(NamedTuple):
    """Bytes of the layers, and of the model as one."""

    layers: ModelBytes
    split_backwards: tuple[SplitBackward, ...]
    """Bytes for each layer where its backward is split."""
    whole_bytes: int
    """Bytes that autograd keeps for the whole model."""
    graph_bytes: int
    """Bytes that autograd keeps for the captured graph, which may differ from the model's code."""
    once: frozenset[str]
    """Layers that change a buffer. A second forward would change it again."""


class MeasuredGraph(NamedTuple):
    """A layer graph and the measurements that it comes from."""

    graph: LayerGraph
    bytes: MeasuredBytes
    times: ModelTimes


def measure_graph(
    profiled: ProfiledModel,
    whole: Forward,
    options: ProfileOptions,
    gpu: Gpu | None,
    steps: StepCounter,
) -> MeasuredGraph:
    """Measure all layers beside `whole`, or compute their times from the roofline of `gpu`."""
    steps.next("bytes of each layer")
    found = _measure_bytes(profiled, whole)
    again = RunAgain(
        _worth_recomputing(profiled, found, options.each),
        _able_to_pair(profiled, found) if options.pairs else (),
    )
    times = _times(profiled, whole, options, gpu, again, steps)
    measured = _measurements(profiled, times, options.each)
    graph = layer_graph(profiled, found.layers, found.split_backwards, measured)
    return MeasuredGraph(graph, found, times)


def with_own_bytes(
    profiled: ProfiledModel, times: ModelTimes, options: ProfileOptions, steps: StepCounter
) -> LayerGraph:
    """Return the layer graph of `profiled` with its own bytes, and seconds of another graph with equal layers."""
    steps.next("bytes of each layer")
    found = _measure_bytes(profiled, graph_forward(profiled))
    measured = _measurements(profiled, times, options.each)
    return layer_graph(profiled, found.layers, found.split_backwards, measured)


def _times(
    profiled: ProfiledModel,
    whole: Forward,
    options: ProfileOptions,
    gpu: Gpu | None,
    again: RunAgain,
    steps: StepCounter,
) -> ModelTimes:
    if gpu is not None:
        steps.next("times of each layer")
        return compute_times(profiled, whole, gpu, again, kernels_asked(options, gpu))
    if options.compile:
        steps.next("compiling the layers")
        profiled, whole = compiled(profiled), compiled_forward(profiled)
    effort = Effort(options.warmup, options.repeats, options.max_spread)
    stopwatch = stopwatch_of(torch.device(options.device))
    return measure_times(profiled, whole, stopwatch, effort, again, steps)


def _measure_bytes(profiled: ProfiledModel, whole: Forward) -> MeasuredBytes:
    buffers = dict(profiled.captured.module.named_buffers(remove_duplicate=False))
    before = {name: buffer._version for name, buffer in buffers.items()}
    layers = measure_layer_bytes(profiled.programs, profiled.state, profiled.leaves[0].device)
    changed = {name for name, buffer in buffers.items() if buffer._version != before[name]}
    once = {la.name for la in profiled.captured.layers if changed.intersection(la.buffers)}
    return MeasuredBytes(
        layers=layers,
        split_backwards=measure_split_backwards(profiled),
        whole_bytes=saved_bytes(whole, profiled.state),
        graph_bytes=saved_bytes(graph_forward(profiled), profiled.state),
        once=frozenset(once),
    )


def _worth_recomputing(
    profiled: ProfiledModel, found: MeasuredBytes, each: bool
) -> tuple[int, ...]:
    """Return the places where layers keep a stash inside and can run twice.

    Identical layers are represented by the first, unless `each`.
    """
    layers = profiled.captured.layers
    able = [
        place
        for place, (layer, kept) in enumerate(zip(layers, found.layers.layers, strict=True))
        if kept.stash_bytes and layer.name not in found.once
    ]
    groups = identical_layers(layers)
    chosen = [p for p in able if each or groups[layers[p].fingerprint][0] == p]
    return tuple(place for place in chosen if runs_twice(profiled, place))


def _able_to_pair(profiled: ProfiledModel, found: MeasuredBytes) -> tuple[int, ...]:
    """Return the places of layers whose forward may run twice."""
    layers = profiled.captured.layers
    able = [place for place, layer in enumerate(layers) if layer.name not in found.once]
    twice: dict[str, bool] = {}
    for place in able:
        own = layers[place].fingerprint
        if own not in twice:
            twice[own] = runs_twice(profiled, place)
    return tuple(place for place in able if twice[layers[place].fingerprint])


def _measurements(profiled: ProfiledModel, times: ModelTimes, each: bool) -> list[LayerMeasurement]:
    """Return each layer's times in all rounds, pooled over identical layers unless `each`."""
    layers = profiled.captured.layers
    result: list[LayerMeasurement] = []
    groups = identical_layers(layers)
    for place, layer in enumerate(layers):
        members = (place,) if each else groups[layer.fingerprint]
        first = members[0]
        result.append(
            LayerMeasurement(
                times=tuple(r.layers[member] for member in members for r in times.rounds),
                update_time=times.updates[place],
                recompute_costs=times.recompute_costs.get(first),
                pairs=tuple(s for member in members for s in times.pairs.get(member, ())),
                same_as=None if first == place else layers[first].name,
            )
        )
    return result
