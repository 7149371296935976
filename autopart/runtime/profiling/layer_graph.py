"""A captured model and what was measured of it, as the layer graph of a profile."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from autopart.graph import Halves, Input, Layer, LayerGraph, Recompute, TiedParameter, Value
from autopart.runtime.capture.capture import Captured, CapturedLayer
from autopart.runtime.capture.split import LOSS_OUTPUT
from autopart.runtime.models.attributes import lookup
from autopart.runtime.profiling.accounting import Account, LayerBytes
from autopart.runtime.profiling.rounds import LayerTimes
from autopart.runtime.profiling.run_again import Again, Alternatives
from autopart.runtime.profiling.subject import Subject
from autopart.runtime.profiling.timing import summarize


class Measured(NamedTuple):
    """The times of one layer in every round, and of identical layers where these are pooled."""

    times: tuple[LayerTimes, ...]
    update_time: float
    again: Alternatives | None = None
    """Of a layer that can run again."""
    same_as: str | None = None


class ParameterSize(NamedTuple):
    """What parameters weigh."""

    param_bytes: int
    grad_bytes: int
    num_trainable: int


def layer_graph(
    subject: Subject, account: Account, halves: Sequence[Halves], measured: Sequence[Measured]
) -> LayerGraph:
    """The graph that the profile holds."""
    captured = subject.captured
    layers = zip(
        captured.layers,
        subject.segments.layers,
        subject.parameters,
        account.layers,
        halves,
        measured,
        strict=True,
    )
    return LayerGraph(
        layers=tuple(
            _layer(
                layer,
                sizes=size_of(parameters),
                buffer_bytes=_buffer_bytes(captured, layer)
                + account.loss_bytes * (LOSS_OUTPUT in segment.outputs),
                held=held,
                halves=split,
                measured=times,
            )
            for layer, segment, parameters, held, split, times in layers
        ),
        values=tuple(
            Value(
                name=value.name,
                producer=value.producer,
                consumers=value.consumers,
                bytes=value.bytes,
                has_gradient=value.has_gradient,
                grad_extra_bytes=max(account.grad_extra.get(value.name, {}).values(), default=0),
                grad_extra_by=tuple(account.grad_extra.get(value.name, ())),
                kept_by=account.kept_by.get(value.name, ()),
                part_of=account.part_of.get(value.name),
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
    """The places of the layers that run the same computation, by its fingerprint."""
    groups: dict[str, tuple[int, ...]] = {}
    for place, layer in enumerate(layers):
        groups[layer.fingerprint] = (*groups.get(layer.fingerprint, ()), place)
    return groups


def size_of(parameters: Iterable[torch.nn.Parameter]) -> ParameterSize:
    """Bytes and trained elements of different parameters."""
    everything = list(parameters)
    trained = [parameter for parameter in everything if parameter.requires_grad]
    return ParameterSize(
        param_bytes=sum(parameter.nbytes for parameter in everything),
        grad_bytes=sum(parameter.nbytes for parameter in trained),
        num_trainable=sum(parameter.numel() for parameter in trained),
    )


def _buffer_bytes(captured: Captured, layer: CapturedLayer) -> int:
    found = [lookup(captured.module, name) for name in layer.buffers]
    return sum(buffer.nbytes for buffer in {id(buffer): buffer for buffer in found}.values())


def _layer(
    layer: CapturedLayer,
    *,
    sizes: ParameterSize,
    buffer_bytes: int,
    held: LayerBytes,
    halves: Halves,
    measured: Measured,
) -> Layer:
    forward = summarize([times.forward for times in measured.times])
    backward = summarize([times.backward for times in measured.times])
    inward = summarize([times.input_grad for times in measured.times])
    weights = summarize([times.weight_grad for times in measured.times])
    split = [t.split_forward + t.input_grad + t.weight_grad for t in measured.times]
    whole = [t.forward + t.backward for t in measured.times]
    more = summarize([a - b for a, b in zip(split, whole, strict=True)]).median
    # Where the halves take less than the whole, as where W adds in place, W has the rest.
    weight_grad_time = min(max(weights.median, backward.median - inward.median), backward.median)
    again = measured.again
    return Layer(
        name=layer.name,
        kind=layer.kind,
        forward_time=forward.median,
        input_grad_time=backward.median - weight_grad_time,
        weight_grad_time=weight_grad_time,
        split_time=max(0.0, more),
        update_time=measured.update_time,
        forward_spread=forward.spread,
        input_grad_spread=inward.spread,
        weight_grad_spread=weights.spread,
        forward_flops=held.forward_flops,
        **sizes._asdict(),
        buffer_bytes=buffer_bytes,
        stash_bytes=held.stash_bytes,
        workspace_bytes=held.workspace_bytes,
        backward_workspace_bytes=held.backward_workspace_bytes,
        recompute=_alternative(again and again.recompute, 0, held.stash_bytes),
        selective=_alternative(
            again and again.selective,
            again.recompute.stash_bytes + 1 if again else 0,
            held.stash_bytes,
        ),
        halves=halves,
        same_as=measured.same_as,
    )


def _alternative(again: Again | None, least: int, kept: int) -> Recompute | None:
    """What running again changes; None where it leaves no less than keeping all, or less than `least`,
    as where a layer has no products that could stay."""
    if again is None or not least <= again.stash_bytes < kept:
        return None
    return Recompute(extra_time=again.time, stash_bytes=again.stash_bytes)
