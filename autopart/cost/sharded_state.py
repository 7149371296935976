"""Sharded state: the layers of a rank group whose d GPUs share the samples of a microbatch, and the state.

The layers come from a profile of B / d samples, B being the microbatch of the group. No new profile is needed.
docs/sharding.md derives the formulas.

Symbols   W, g      bytes of a layer's weights, and of its trained gradients, as they are without sharding
          r         gradient bytes in the dtype in which gradients are summed
          W+, r+    those of the nearest layer behind that has parameters, W- those of the one before
              in W, r+ is that of the nearest layer behind that leaves weight gradients for W

    bytes that stay      zero2: gradients, master copies and optimizer state / d
                         zero3: weights / d too
                         a sum once per step: gradients stay whole until then
    forward              zero3: gathers W beneath compute;  transient W + W+
    backward             zero3: gathers W again;            transient W + W-
                         scatters r beneath compute;        transient g + r+ + r+ / d
    once per step        zero2: gathers g, the trained weights
                         a sum once per step: scatters r

The layer that runs is whole. So is the next one, which is gathered beneath it, and the gradients of the last one,
which are scattered beneath it into a d-th. Their places depend on no cut, so each sum over layers stays a sum.
"""

import itertools
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import msgspec

from autopart.cost.syncs import gradient_bytes
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.layer_graph import Layer, LayerGraph, SplitBackward, TiedParameter, positions
from autopart.records.rank_group import Group
from autopart.records.training import Training


def sharded_variant(
    graph: LayerGraph,
    collectives: tuple[LayerCollectives, ...],
    group: Group,
    training: Training,
) -> GroupVariant:
    """The layers of one GPU in a group with sharded state.

    `graph` and `collectives` are those of the same group without sharded state, for its own samples.
    """
    own = {one.layer: one.collectives for one in collectives}
    summed = tuple(
        LayerCollectives(
            layer=layer.name,
            collectives=(*own.get(layer.name, ()), *_collectives(layer, group, training)),
        )
        for layer in graph.layers
        if layer.param_bytes or layer.name in own
    )
    sharded = sharded_layers(graph, group, training)
    return GroupVariant(group=group, graph=sharded, collectives=summed)


Whole = Literal["weights", "gradients"]


def sharded_layers(
    graph: LayerGraph,
    group: Group,
    training: Training,
    whole: Collection[Whole] = ("weights", "gradients"),
) -> LayerGraph:
    """The layers of one GPU; transient bytes count only the `whole` weights and gradients that are named."""
    beside = _Transients(graph, training)
    layers = tuple(
        _layer(graph, at, group, training, _whole_bytes(beside, at, group, whole))
        for at in range(len(graph.layers))
    )
    tied = tuple(_tied(one, group, training) for one in graph.tied)
    return msgspec.structs.replace(graph, layers=layers, tied=tied)


class _WholeBytes(NamedTuple):
    """Bytes that are whole while one layer runs."""

    in_forward: int
    """Weights in forward."""
    weights: int
    """Weights in backward."""
    gradients: int
    """Gradients in a whole backward."""
    in_w: int
    """Gradients in W."""
    waiting: int
    """Further gradients of tied parameters, in a whole backward."""


def _whole_bytes(
    beside: "_Transients", at: int, group: Group, whole: Collection[Whole]
) -> _WholeBytes:
    d, gathers = group.data, group.shard == "zero3" and "weights" in whole
    in_forward, weights = beside.weights(at) if gathers else (0, 0)
    scatters = group.reduce == "microbatch" and "gradients" in whole
    return _WholeBytes(
        in_forward,
        weights,
        gradients=beside.gradients(at, d) if scatters else 0,
        in_w=beside.gradients_in_w(at, d) if scatters else 0,
        waiting=beside.waiting(at, d) if "gradients" in whole else 0,
    )


def _collectives(layer: Layer, group: Group, training: Training) -> Iterator[Collective]:
    """The collectives that gather a layer's weights and scatter its gradients."""
    if group.shard == "zero3" and layer.param_bytes:
        for phase in ("forward", "input_grad"):
            yield Collective(kind="all_gather", bytes=layer.param_bytes, phase=phase, among="data")
    if layer.grad_bytes:
        yield Collective(
            kind="reduce_scatter",
            bytes=gradient_bytes(layer, training),
            phase="step" if group.reduce == "step" else "weight_grad",
            among="data",
        )
        if group.shard == "zero2":
            yield Collective(kind="all_gather", bytes=layer.grad_bytes, phase="step", among="data")


def _layer(
    graph: LayerGraph, at: int, group: Group, training: Training, whole: _WholeBytes
) -> Layer:
    """A layer with its part of the state, and transient bytes for what is whole for a while."""
    layer, d = graph.layers[at], group.data
    tied = [one for one in graph.tied if layer.name in one.layers]
    unshared = layer.unshared_update_time or 0.0
    in_forward, weights, gradients, in_w, waiting = whole
    backward = layer.backward_workspace_bytes
    in_backward = weights + gradients + waiting
    if backward is None:
        in_forward = max(in_forward, in_backward)
    grads = _part(layer.grad_bytes, [one.grad_bytes for one in tied], d)
    trained = _part(layer.num_trainable, [one.num_trainable for one in tied], d)
    split = layer.split_backward
    return msgspec.structs.replace(
        layer,
        update_time=unshared + (layer.update_time - unshared) / d,
        param_bytes=_part(layer.param_bytes, [one.param_bytes for one in tied], d)
        if group.shard == "zero3"
        else layer.param_bytes,
        grad_bytes=grads,
        num_trainable=trained,
        unscattered_grad_bytes=_unscattered(layer, grads, trained, group, training),
        workspace_bytes=layer.workspace_bytes + in_forward,
        backward_workspace_bytes=None if backward is None else backward + in_backward,
        split_backward=split and _split(split, weights, in_w),
    )


def _split(split: SplitBackward, weights: int, gradients: int) -> SplitBackward:
    """I needs whole weights, W makes whole gradients."""
    return msgspec.structs.replace(
        split,
        input_grad_workspace_bytes=split.input_grad_workspace_bytes + weights,
        weight_grad_workspace_bytes=split.weight_grad_workspace_bytes + gradients,
    )


def _tied(tied: TiedParameter, group: Group, training: Training) -> TiedParameter:
    """A tied parameter with its part of the state."""
    d = group.data
    grads, trained = _part(tied.grad_bytes, [], d), _part(tied.num_trainable, [], d)
    return msgspec.structs.replace(
        tied,
        param_bytes=_part(tied.param_bytes, [], d) if group.shard == "zero3" else tied.param_bytes,
        grad_bytes=grads,
        num_trainable=trained,
        unscattered_grad_bytes=_unscattered(tied, grads, trained, group, training),
    )


def _unscattered(
    whole: Layer | TiedParameter, grads: int, trained: int, group: Group, training: Training
) -> int | msgspec.UnsetType:
    """Gradient bytes beyond the GPU's part, where they stay whole until a sum once per step."""
    if group.reduce != "step" or not whole.grad_bytes:
        return msgspec.UNSET
    part = msgspec.structs.replace(whole, grad_bytes=grads, num_trainable=trained)
    return gradient_bytes(whole, training) - gradient_bytes(part, training)


def _part(size: int, tied: list[int], d: int) -> int:
    """One of d parts, rounded up. Each tied parameter has a part of its own, which its layers share."""
    return -(-(size - sum(tied)) // d) + sum(-(-one // d) for one in tied)


class _Transients:
    """Whole weights and gradients that are there while one layer runs."""

    def __init__(self, graph: LayerGraph, training: Training) -> None:
        layers = graph.layers
        self._weights = [layer.param_bytes for layer in layers]
        self._grads = [layer.grad_bytes for layer in layers]
        self._summed = [gradient_bytes(layer, training) for layer in layers]
        place = positions(graph)
        self._readers = [
            (one.grad_bytes, sorted({place[name] for name in one.layers})) for one in graph.tied
        ]
        # The neighbours are the nearest layers with parameters: others need no gather.
        before = list(itertools.accumulate(range(len(layers)), self._nearer))
        last = len(layers) - 1
        behind = [*itertools.accumulate(reversed(range(len(layers))), self._nearer)][::-1]
        self._before, self._behind = [0, *before[:-1]], [*behind[1:], last]
        # In W a layer without weight gradients of its own is passed over: its I has made them.
        self._has_w = [
            la.split_backward is None or la.split_backward.waiting_bytes for la in layers
        ]
        in_w = [*itertools.accumulate(reversed(range(len(layers))), self._nearer_in_w)][::-1]
        self._behind_in_w = [*in_w[1:], last]

    def _nearer(self, last: int, at: int) -> int:
        return at if self._weights[at] else last

    def _nearer_in_w(self, last: int, at: int) -> int:
        return at if self._weights[at] and self._has_w[at] else last

    def weights(self, at: int) -> tuple[int, int]:
        """Weights of the layer and of the one gathered beneath it, in forward and in backward."""
        own, before, behind = self._weights[at], self._before[at], self._behind[at]
        return (
            own + (self._weights[behind] if behind != at else 0),
            own + (self._weights[before] if before != at else 0),
        )

    def gradients(self, at: int, d: int) -> int:
        """Gradients of the layer, and those that are scattered beneath it, with their part of the sum."""
        return self._whole_gradients(at, self._behind[at], d)

    def gradients_in_w(self, at: int, d: int) -> int:
        """The same in W."""
        return self._whole_gradients(at, self._behind_in_w[at], d)

    def _whole_gradients(self, at: int, behind: int, d: int) -> int:
        scattered = self._summed[behind] if behind != at else 0
        return self._grads[at] + scattered + -(-scattered // d)

    def waiting(self, at: int, d: int) -> int:
        """Bytes by which whole gradients of tied parameters, which wait for an earlier layer, exceed their parts.

        Each later reader leaves one. The sum of two is a tensor of its own.
        """
        found = 0
        for size, readers in self._readers:
            if readers[0] <= at < readers[-1]:
                later = sum(reader > at for reader in readers)
                found += (size - -(-size // d)) * (later + (at in readers))
        return found
