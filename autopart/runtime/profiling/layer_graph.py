"""The layer graph in a profile, from a captured model and its measurements."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import torch

from autopart.records.layer_graph import (
    Input,
    Layer,
    LayerGraph,
    Recompute,
    SplitBackward,
    TiedParameter,
    Value,
)
from autopart.runtime.capture.capture import Captured, CapturedLayer
from autopart.runtime.capture.stage_modules import LOSS_OUTPUT
from autopart.runtime.measuring.stopwatch import summarize
from autopart.runtime.models.attributes import lookup
from autopart.runtime.profiling.layer_bytes import LayerBytes, ModelBytes
from autopart.runtime.profiling.profiled_model import ProfiledModel
from autopart.runtime.profiling.recompute_cost import AlternativeCosts, RecomputeCost
from autopart.runtime.profiling.rounds import LayerTimes


class LayerMeasurement(NamedTuple):
    """One layer's times in every round. Identical layers may pool their times."""

    times: tuple[LayerTimes, ...]
    update_time: float
    recompute_costs: AlternativeCosts | None = None
    """None for a layer that cannot be recomputed."""
    pairs: tuple[float, ...] = ()
    """Seconds of its forward beside its backward in every run; empty where not measured."""
    same_as: str | None = None
    """Name of the identical layer that was measured for this one; None if it is the first."""


class ParameterSize(NamedTuple):
    """Bytes and trained elements in some parameters."""

    param_bytes: int
    grad_bytes: int
    num_trainable: int


def layer_graph(
    profiled: ProfiledModel,
    model_bytes: ModelBytes,
    split_backwards: Sequence[SplitBackward],
    measured: Sequence[LayerMeasurement],
) -> LayerGraph:
    """Return the layer graph for the profile. Every sequence has one item per layer."""
    captured = profiled.captured
    layers = zip(
        captured.layers,
        profiled.programs.layers,
        profiled.parameters,
        model_bytes.layers,
        split_backwards,
        measured,
        strict=True,
    )
    return LayerGraph(
        layers=tuple(
            _layer(
                layer,
                sizes=size_of(parameters),
                buffer_bytes=_buffer_bytes(captured, layer)
                + model_bytes.loss_bytes * (LOSS_OUTPUT in program.outputs),
                layer_bytes=layer_bytes,
                split_backward=split_backward,
                measured=times,
                is_checkpointed=layer.name in captured.checkpointed.whole,
            )
            for layer, program, parameters, layer_bytes, split_backward, times in layers
        ),
        values=tuple(
            Value(
                name=value.name,
                producer=value.producer,
                consumers=value.consumers,
                bytes=value.bytes,
                has_gradient=value.has_gradient,
                grad_extra_bytes=max(
                    model_bytes.grad_extra.get(value.name, {}).values(), default=0
                ),
                grad_extra_by=tuple(model_bytes.grad_extra.get(value.name, ())),
                kept_by=model_bytes.kept_by.get(value.name, ()),
                part_of=model_bytes.part_of.get(value.name),
            )
            for value in captured.values
        ),
        inputs=tuple(
            Input(name=leaf.name, consumers=leaf.consumers, bytes=leaf.bytes)
            for leaf in captured.inputs
        ),
        tied=tuple(
            TiedParameter(
                name=name, layers=layers, **size_of([lookup(captured.module, name)])._asdict()
            )
            for name, layers in captured.tied.items()
        ),
    )


def identical_layers(layers: Sequence[CapturedLayer]) -> Mapping[str, tuple[int, ...]]:
    """Group the layers that run the same computation: their places, by fingerprint."""
    groups: dict[str, tuple[int, ...]] = {}
    for place, layer in enumerate(layers):
        groups[layer.fingerprint] = (*groups.get(layer.fingerprint, ()), place)
    return groups


def size_of(parameters: Iterable[torch.nn.Parameter]) -> ParameterSize:
    """Return bytes and trained elements; a complex element counts as two. No parameter may appear
    twice."""
    everything = list(parameters)
    trained = [parameter for parameter in everything if parameter.requires_grad]
    return ParameterSize(
        param_bytes=sum(parameter.nbytes for parameter in everything),
        grad_bytes=sum(parameter.nbytes for parameter in trained),
        num_trainable=sum(p.numel() * (2 if p.is_complex() else 1) for p in trained),
    )


def _buffer_bytes(captured: Captured, layer: CapturedLayer) -> int:
    found = [lookup(captured.module, name) for name in layer.buffers]
    return sum(buffer.nbytes for buffer in {id(buffer): buffer for buffer in found}.values())


def _layer(
    layer: CapturedLayer,
    *,
    sizes: ParameterSize,
    buffer_bytes: int,
    layer_bytes: LayerBytes,
    split_backward: SplitBackward,
    measured: LayerMeasurement,
    is_checkpointed: bool,
) -> Layer:
    forward = summarize([times.forward for times in measured.times])
    backward = summarize([times.backward for times in measured.times])
    inward = summarize([times.input_grad for times in measured.times])
    weights = summarize([times.weight_grad for times in measured.times])
    split = [t.split_forward + t.input_grad + t.weight_grad for t in measured.times]
    whole = [t.forward + t.backward for t in measured.times]
    added = summarize([a - b for a, b in zip(split, whole, strict=True)]).median
    # I and W must add up to the whole backward. W takes the difference where their sum is less,
    # for example because W adds to the gradient in place.
    weight_grad_time = min(max(weights.median, backward.median - inward.median), backward.median)
    pair_time: float | msgspec.UnsetType = msgspec.UNSET
    if measured.pairs:
        # A pair that takes longer than both in turn is run in turn.
        least, most = max(forward.median, backward.median), forward.median + backward.median
        pair_time = min(max(summarize(measured.pairs).median, least), most)
    costs = measured.recompute_costs
    kept = layer_bytes.stash_bytes
    return Layer(
        name=layer.name,
        kind=layer.kind,
        forward_time=forward.median,
        input_grad_time=backward.median - weight_grad_time,
        weight_grad_time=weight_grad_time,
        split_time=max(0.0, added),
        pair_time=pair_time,
        update_time=measured.update_time,
        forward_spread=forward.spread,
        input_grad_spread=inward.spread,
        weight_grad_spread=weights.spread,
        forward_flops=layer_bytes.forward_flops,
        memory_share=layer_bytes.memory_share or msgspec.UNSET,
        **sizes._asdict(),
        buffer_bytes=buffer_bytes,
        stash_bytes=layer_bytes.stash_bytes,
        workspace_bytes=layer_bytes.workspace_bytes,
        backward_workspace_bytes=layer_bytes.backward_workspace_bytes,
        recompute=_alternative(costs and costs.recompute, 0, kept),
        # A layer without products that could stay keeps no more than under full recomputation.
        selective=_alternative(
            costs and costs.selective, costs.recompute.stash_bytes + 1 if costs else 0, kept
        ),
        checkpointed=True if is_checkpointed else msgspec.UNSET,
        split_backward=split_backward,
        same_as=measured.same_as,
    )


def _alternative(cost: RecomputeCost | None, least: int, kept: int) -> Recompute | None:
    """Return an alternative that keeps at least `least` bytes but fewer than `kept`, else None."""
    if cost is None or not least <= cost.stash_bytes < kept:
        return None
    return Recompute(extra_time=cost.time, stash_bytes=cost.stash_bytes)
