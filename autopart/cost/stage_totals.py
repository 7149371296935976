"""Stage totals: sums over a stage's layers and over the values at its two cuts.

The formulas stand here once, and a `StageSums` gives them their sums. These are arrays for stages between cuts
(autopart/cost/stages.py), or affine expressions in an integer program (autopart/solvers/ilp/sums.py).

Stash on a stage, for each microbatch in flight:

    the stash inside its layers
    + each value that it receives: kept until backward, and passed on from there
    + each value that it makes and that some backward on the stage needs

Each value counts once. Other values that it makes and sends on are its outputs: it frees them once they are sent.
"""

import functools
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from autopart.records.layer_graph import LayerGraph, pair_saving, positions
from autopart.units import Q

Array = npt.NDArray[Any]
"""Seconds or bytes for several stages, as floats or whole numbers."""


class Traffic(NamedTuple, Generic[Q]):
    """Bytes and tensors that cross one cut for one microbatch."""

    bytes: Q
    tensors: Q
    grad_bytes: Q
    grad_tensors: Q


class StageTotals(NamedTuple, Generic[Q]):
    """A stage's seconds and bytes before it has ranks, links or a schedule."""

    forward_time: Q
    """Seconds per microbatch in F."""
    backward_time: Q
    """Seconds per microbatch in a whole backward."""
    weight_grad_time: Q
    """Seconds that W runs where the backward is split into I and W."""
    split_time: Q
    """Seconds that F, I and W take more than F and a whole backward; I takes them."""
    update_time: Q
    """Seconds per step for the optimizer's update."""
    unshared_update_time: Q
    """The part of `update_time` that replicas do not share under ZeRO-1."""
    weight_bytes: Q
    """Parameter bytes, a tied parameter once, and bytes for the model's buffers."""
    grad_bytes: Q
    """Gradient bytes in the weights' own precision."""
    num_trainable: Q
    """Trained elements, tied ones once."""
    stash_bytes: Q
    """Bytes that stay from forward to backward, for each microbatch in flight."""
    inner_stash_bytes: Q
    """Stash that every larger stage keeps too; at most the stage's own stash."""
    workspace_bytes: Q
    """Transient bytes in F and in a whole backward."""
    first_backward_bytes: Q
    """Transient bytes in the stage's first whole backward, with the gradients that it has made so far."""
    input_bytes: Q
    """Bytes that the stage reads from the batch for one microbatch."""
    received: Traffic[Q]
    """Traffic over the cut before the stage."""
    sent: Traffic[Q]
    """Traffic over the cut behind the stage."""
    host_bytes: Q
    """Stash in host memory, for each microbatch in flight."""
    widest_trainable: Q
    """Trained elements in the layer with the most."""
    optimizer_on_host: Q
    """1 where optimizer state and master copies lie in host memory, else 0."""
    waiting_bytes: Q
    """Bytes that one microbatch keeps from I to W, where the backward is split."""
    input_grad_workspace_bytes: Q
    """Transient bytes in I."""
    weight_grad_workspace_bytes: Q
    """Transient bytes in W."""
    relayed_grad_bytes: Q
    """Received gradient bytes that the stage passes on unchanged: autograd copies them."""
    output_bytes: Q
    """Bytes in values that the stage makes and sends on, and that no backward on it needs."""
    pair_saving: Q
    """Seconds by which F beside a whole backward takes less than both in turn."""
    unscattered_grad_bytes: Q
    """Gradient bytes beyond `grad_bytes`, kept until a sum once per step; 0 without sharded state."""


class LayerSizes(NamedTuple):
    """Seconds and bytes for each layer in a graph, arrays with shape (layers,)."""

    forward_time: npt.NDArray[np.float64]
    backward_time: npt.NDArray[np.float64]
    weight_grad_time: npt.NDArray[np.float64]
    split_time: npt.NDArray[np.float64]
    pair_saving: npt.NDArray[np.float64]
    update_time: npt.NDArray[np.float64]
    unshared_update_time: npt.NDArray[np.float64]
    weight_bytes: npt.NDArray[np.int64]
    """Parameters and buffers, without tied parameters."""
    grad_bytes: npt.NDArray[np.int64]
    """Gradient bytes, without tied parameters."""
    num_trainable: npt.NDArray[np.int64]
    """Trained elements, without tied ones."""
    trained_elements: npt.NDArray[np.int64]
    """Trained elements, with tied ones."""
    unscattered_grad_bytes: npt.NDArray[np.int64]
    """Gradient bytes beyond shards, without tied parameters."""
    stash_bytes: npt.NDArray[np.int64]
    """Stash inside the layer."""
    waiting_bytes: npt.NDArray[np.int64]
    """Bytes inside the layer that wait from I to W; 0 where the profile does not say."""
    waiting_value_bytes: npt.NDArray[np.int64]
    """Bytes in values that the layer's W needs; 0 where the profile does not say."""
    needed_value_bytes: npt.NDArray[np.int64]
    """Bytes in values that the layer's backward needs, each value at the first such layer."""


class StageSums(Protocol[Q]):
    """Sums over a stage's layers, and over the values at its cuts."""

    def seconds(self, per_layer: npt.NDArray[np.float64]) -> Q:
        """The sum over the stage's layers."""
        ...

    def bytes(self, per_layer: npt.NDArray[np.int64]) -> Q:
        """The same for whole numbers."""
        ...

    def holds_tied(self, number: int) -> Q:
        """1 where the stage has a copy of tied parameter `number`, else 0."""
        ...

    def reads_input(self, number: int) -> Q:
        """1 where the stage reads model input `number`, else 0."""
        ...

    def received(self) -> Traffic[Q]:
        """Traffic over the cut before the stage."""
        ...

    def sent(self) -> Traffic[Q]:
        """Traffic over the cut behind the stage."""
        ...

    def kept_values(self) -> Q:
        """Bytes in values that the stage makes and that some backward on it needs."""
        ...

    def outputs(self) -> Q:
        """Bytes in values that the stage makes and sends on, and that no backward on it needs."""
        ...

    def relayed_gradients(self) -> Q:
        """Gradient bytes that the stage receives and passes on, for values that it does not read."""
        ...

    def nothing(self) -> Q:
        """0 seconds or bytes."""
        ...


@functools.lru_cache(maxsize=8)
def layer_sizes(graph: LayerGraph) -> LayerSizes:
    """The terms in the sums over layers."""
    layers, place = graph.layers, positions(graph)
    splits = [la.split_backward for la in layers]
    weights = [la.param_bytes + la.buffer_bytes for la in layers]
    gradients = [la.grad_bytes for la in layers]
    trainable = [la.num_trainable for la in layers]
    unscattered = [la.unscattered_grad_bytes or 0 for la in layers]
    # A tied parameter counts once on a stage, not once for each of its layers.
    for tied in graph.tied:
        for name in set(tied.layers):
            weights[place[name]] -= tied.param_bytes
            gradients[place[name]] -= tied.grad_bytes
            trainable[place[name]] -= tied.num_trainable
            unscattered[place[name]] -= tied.unscattered_grad_bytes or 0
    needed = [0] * len(layers)
    for value in graph.values:
        if value.kept_by and value.consumers:
            needed[min(place[name] for name in value.kept_by)] += value.bytes
    return LayerSizes(
        forward_time=np.array([la.forward_time for la in layers]),
        backward_time=np.array([la.input_grad_time + la.weight_grad_time for la in layers]),
        weight_grad_time=np.array([la.weight_grad_time for la in layers]),
        split_time=np.array([la.split_time for la in layers]),
        pair_saving=np.array([pair_saving(la) for la in layers]),
        update_time=np.array([la.update_time for la in layers]),
        unshared_update_time=np.array([la.unshared_update_time or 0.0 for la in layers]),
        weight_bytes=np.array(weights),
        grad_bytes=np.array(gradients),
        num_trainable=np.array(trainable),
        trained_elements=np.array([la.num_trainable for la in layers]),
        unscattered_grad_bytes=np.array(unscattered),
        stash_bytes=np.array([la.stash_bytes for la in layers]),
        waiting_bytes=np.array([split.waiting_bytes if split else 0 for split in splits]),
        waiting_value_bytes=np.array(
            [split.waiting_value_bytes if split else 0 for split in splits]
        ),
        needed_value_bytes=np.array(needed),
    )


def plain_totals(graph: LayerGraph, sums: StageSums[Q]) -> StageTotals[Q]:
    """Totals for stages whose layers keep their stash: the fields that are sums.

    The workspaces, `waiting_bytes` and `widest_trainable` are maxima, and are 0 here. autopart/cost/cuts.py fills
    them in. An integer program has constraints in their place.
    """
    sizes = layer_sizes(graph)
    copies = [sums.holds_tied(number) for number in range(len(graph.tied))]
    reads = [sums.reads_input(number) for number in range(len(graph.inputs))]
    inner = sums.bytes(sizes.stash_bytes) + sums.kept_values()
    received, sent = sums.received(), sums.sent()
    none = sums.nothing()

    def once(per_layer: npt.NDArray[np.int64], per_tied: list[int]) -> Q:
        """The sum over layers, plus each tied parameter that the stage holds, once."""
        alone = sums.bytes(per_layer)
        return alone + sum(size * copy for size, copy in zip(per_tied, copies, strict=True))

    return StageTotals(
        forward_time=sums.seconds(sizes.forward_time),
        backward_time=sums.seconds(sizes.backward_time),
        weight_grad_time=sums.seconds(sizes.weight_grad_time),
        split_time=sums.seconds(sizes.split_time),
        update_time=sums.seconds(sizes.update_time),
        unshared_update_time=sums.seconds(sizes.unshared_update_time),
        weight_bytes=once(sizes.weight_bytes, [t.param_bytes for t in graph.tied]),
        grad_bytes=once(sizes.grad_bytes, [t.grad_bytes for t in graph.tied]),
        num_trainable=once(sizes.num_trainable, [t.num_trainable for t in graph.tied]),
        stash_bytes=inner + received.bytes,
        inner_stash_bytes=inner,
        workspace_bytes=none,
        first_backward_bytes=none,
        input_bytes=none + sum(i.bytes * copy for i, copy in zip(graph.inputs, reads, strict=True)),
        received=received,
        sent=sent,
        host_bytes=none,
        widest_trainable=none,
        optimizer_on_host=none,
        waiting_bytes=none,
        input_grad_workspace_bytes=none,
        weight_grad_workspace_bytes=none,
        relayed_grad_bytes=sums.relayed_gradients(),
        output_bytes=sums.outputs(),
        pair_saving=sums.seconds(sizes.pair_saving),
        unscattered_grad_bytes=once(
            sizes.unscattered_grad_bytes, [t.unscattered_grad_bytes or 0 for t in graph.tied]
        ),
    )
