"""A model run layer by layer, in the context of the whole model.

Each layer is a program of its own; the tensors between them are cut off from autograd, as between
the stages of a pipeline. Forward runs every layer in order and then backward every layer in
reverse, so that a layer finds caches and allocator as it would inside one step. (Measured with
torch 2.13 on a CPU: the sum of the layers is 1 to 7 % above the whole model's step; layers timed
in loops of their own come out 11 % below it in forward.)

Gradients of parameters are added to those already there, as for every microbatch of a batch but
the first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

T = TypeVar("T")

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """One layer as a program: received values, then inputs of the batch, give its outputs."""

    name: str
    program: Callable[..., Outputs]
    received: tuple[str, ...]
    inputs: Outputs
    outputs: tuple[str, ...]
    trained: bool
    """Whether it has a parameter that needs a gradient."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The layers in a topological order; the last one's output is the loss."""

    layers: tuple[Segment, ...]
    differentiable: frozenset[str]
    """The values that a gradient flows back for."""
    loss: str


@dataclass(frozen=True, slots=True)
class LayerRun:
    """What backward of a layer needs of its forward."""

    received: dict[str, torch.Tensor]
    """Leaves of the layer's own autograd graph."""
    edges: dict[str, GradientEdge]
    """By output; an edge does not keep the output's memory."""


@dataclass(slots=True)
class Tape:
    """A forward that has run and waits for its backward, which consumes it."""

    runs: list[LayerRun]
    seed: torch.Tensor
    """The gradient of the loss: one."""


LOSS_NUMBERS = 4
"""Numbers beside the layers that a rank with the loss holds: the sum of a step's losses, and during a backward the loss
of the microbatch, its share of the batch's, and the gradient of that."""


def loss_bytes(tape: Tape) -> int:
    """Bytes of `LOSS_NUMBERS`."""
    return LOSS_NUMBERS * tape.seed.itemsize


@dataclass(frozen=True, slots=True)
class ForwardCall:
    """A layer's forward, ready to run."""

    index: int
    received: dict[str, torch.Tensor]
    awaiting: tuple[str, ...]
    """The values alive when it starts: those that it, or a later layer, consumes."""
    run: Callable[[], Outputs]


@dataclass(frozen=True, slots=True)
class BackwardCall:
    """A layer's backward, ready to run."""

    index: int
    run: Callable[[], Sequence[torch.Tensor | None]]
    """Gives the gradients of the differentiable values that the layer received, each added to what layers
    behind it have given for the same value."""


def run_forward(segments: Segments, around: Callable[[ForwardCall], Outputs]) -> Tape:
    """Run every layer's forward in order; `around` runs each call and gives back its outputs."""
    last_use = {v: i for i, layer in enumerate(segments.layers) for v in layer.received}
    values: dict[str, torch.Tensor] = {}
    tape = Tape([], torch.empty(0))
    for index, layer in enumerate(segments.layers):
        received = {v: _leaf(values[v], v in segments.differentiable) for v in layer.received}
        outputs = around(_forward_call(index, layer, received, tuple(values)))
        tape.runs.append(LayerRun(received, _edges(layer.outputs, outputs)))
        for name, output in zip(layer.outputs, outputs, strict=True):
            values[name] = output.detach()
        if segments.loss in layer.outputs:
            tape.seed = torch.ones_like(values[segments.loss])
        del outputs
        for name in [v for v in values if last_use.get(v, index) <= index]:
            del values[name]
    return tape


def run_backward(
    segments: Segments,
    tape: Tape,
    around: Callable[[BackwardCall], Sequence[torch.Tensor | None]],
) -> None:
    """Run every layer's backward in reverse order.

    `around` runs each call and gives back what it returns. Layers that no gradient reaches are not called.
    """
    pending = {segments.loss: tape.seed}
    while tape.runs:
        layer_run = tape.runs.pop()
        index = len(tape.runs)
        arrived = {v: pending[v] for v in layer_run.edges if v in pending}
        wanted = [v for v in layer_run.received if v in segments.differentiable]
        if arrived and (wanted or segments.layers[index].trained):
            call = _backward_call(index, layer_run, arrived, wanted, pending)
            for name, gradient in zip(wanted, around(call), strict=True):
                if gradient is not None:
                    pending[name] = gradient
        for name in arrived:
            del pending[name]


def _leaf(value: torch.Tensor, differentiable: bool) -> torch.Tensor:
    leaf = value.detach()
    return leaf.requires_grad_() if differentiable else leaf


def _forward_call(
    index: int, layer: Segment, received: dict[str, torch.Tensor], awaiting: tuple[str, ...]
) -> ForwardCall:
    arguments = (*received.values(), *layer.inputs)
    return ForwardCall(index, received, awaiting, lambda: layer.program(*arguments))


def _edges(names: Sequence[str], outputs: Outputs) -> dict[str, GradientEdge]:
    named = zip(names, outputs, strict=True)
    return {name: get_gradient_edge(output) for name, output in named if output.requires_grad}


def _backward_call(
    index: int,
    layer_run: LayerRun,
    arrived: Mapping[str, torch.Tensor],
    wanted: Sequence[str],
    pending: Mapping[str, torch.Tensor],
) -> BackwardCall:
    leaves = [layer_run.received[name] for name in wanted]
    roots = [layer_run.edges[name] for name in arrived]
    gradients = list(arrived.values())

    def whole_backward() -> Sequence[torch.Tensor | None]:
        torch.autograd.backward(cast(Any, roots), gradients)
        # As autograd does inside a stage: at once, so that no part waits for the value's producer.
        return [
            leaf.grad if leaf.grad is None or name not in pending else pending[name] + leaf.grad
            for name, leaf in zip(wanted, leaves, strict=True)
        ]

    return BackwardCall(index, whole_backward)
