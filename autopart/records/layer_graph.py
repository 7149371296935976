"""Layers and the layer graph, in one fixed topological order.

A layer is never split. A value is a tensor that one layer passes to later layers. It crosses each cut
between its producer and its last consumer exactly once, however many consumers follow the cut.
Each rank reads model inputs (token ids, an image, a mask) from its own data loader, so inputs cross
no cut.
"""

from typing import Annotated, Literal

import msgspec
import networkx as nx

from autopart.units import Bytes, Count, Seconds

LOSS = "loss"
"""The kind that marks the loss layer, which computes the loss from the model's outputs."""


class Recompute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cost and the gain when a layer's forward runs again in backward."""

    extra_time: Seconds
    """Seconds that recompute adds to the layer's backward."""
    stash_bytes: Bytes
    """Stash bytes that still stay for each microbatch, without the layer's inputs."""


class SplitBackward(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes in a layer for one microbatch where its backward is split into I and W."""

    waiting_bytes: Bytes
    """Bytes that I leaves for W: stash that W needs, and gradients made in I. Values are not counted."""
    waiting_value_bytes: Bytes
    """Bytes in values that W needs."""
    input_grad_workspace_bytes: Bytes
    """Transient peak bytes during I, above the bytes before it. `waiting_bytes` grow within it.

    Value gradients count as in the layer's `backward_workspace_bytes`. Where that is null, gradients
    that wait for other layers count too."""
    weight_grad_workspace_bytes: Bytes
    """Transient peak bytes during W, above the bytes before it."""


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer: its seconds and bytes for one microbatch on one device."""

    name: str
    """Module path in the user's model, such as `transformer.h.3`. A second call is `…@1`."""
    kind: str
    """Module class, such as `GPT2Block`, or `loss` for the loss layer."""
    forward_time: Seconds
    """Forward seconds for one microbatch."""
    input_grad_time: Seconds
    """Backward seconds that belong to I: the whole backward without W."""
    weight_grad_time: Seconds
    """Backward seconds that can wait: the weight gradients (W = B - I)."""
    split_time: Seconds = 0.0
    """Seconds that forward, I and W take together beyond forward and whole backward."""
    pair_time: Seconds | msgspec.UnsetType = msgspec.UNSET
    """Seconds for one forward beside one whole backward of another microbatch; absent where not known.

    At least the longer of both, at most both in turn."""
    update_time: Seconds = 0.0
    """Seconds per batch for the optimizer's step over the layer's parameters."""
    unshared_update_time: Seconds | msgspec.UnsetType = msgspec.UNSET
    """The part of `update_time` that replicas do not share under ZeRO-1; absent where it is 0."""
    forward_spread: Seconds = 0.0
    """Interquartile range in the measured forward times; 0 where nothing was measured."""
    input_grad_spread: Seconds = 0.0
    """Interquartile range in the measured input-gradient times; 0 where nothing was measured."""
    weight_grad_spread: Seconds = 0.0
    """Interquartile range in the measured weight-gradient times; 0 where nothing was measured."""
    forward_flops: Count = 0
    """Floating-point operations in one forward."""
    memory_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | msgspec.UnsetType = msgspec.UNSET
    """Share of the layer's seconds that wait for memory on a CPU: operations larger than a core's caches.

    Estimated from operands and a roofline; absent for 0 and on other devices."""
    param_bytes: Bytes = 0
    """Bytes in all parameters that the layer reads, tied ones included."""
    grad_bytes: Bytes = 0
    """Bytes in the trained parameters, tied ones included, in their own precision."""
    num_trainable: Count = 0
    """How many parameter elements are trained, tied ones included."""
    unscattered_grad_bytes: Bytes | msgspec.UnsetType = msgspec.UNSET
    """Gradient bytes beyond the rank's shard, kept until a sum once per step; only with sharded state."""
    buffer_bytes: Bytes = 0
    """Bytes in the layer's buffers. The loss layer adds the sum over a step's losses and a few numbers."""
    stash_bytes: Bytes = 0
    """Bytes kept inside the layer from forward to backward, without parameters, inputs and values."""
    workspace_bytes: Bytes = 0
    """Transient peak bytes during forward, above the bytes kept before and after it.

    Where `backward_workspace_bytes` is null, backward is covered too, with the value gradients that
    exist meanwhile."""
    backward_workspace_bytes: Bytes | None = None
    """Transient peak bytes during backward, above the bytes before it; null where not measured apart.

    Gradients that the backward makes are counted. Received value gradients, and value gradients that
    wait for other layers, are not."""
    recompute: Recompute | None = None
    """Recompute for the whole layer; null where impossible, or where no stash is inside."""
    selective: Recompute | None = None
    """Recompute for the layer's cheap part only; null where the profile has no such alternative.

    Products with parameters (linear, convolution) are not computed again: their results stay."""
    checkpointed: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where the model checkpoints the whole layer itself; absent elsewhere."""
    split_backward: SplitBackward | None = None
    """Bytes with a split backward; null where not profiled. Then the whole stash stays until W."""
    same_as: str | None = None
    """The identical layer that was measured instead; null where this layer was measured."""


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor that one layer passes to later layers."""

    name: str
    """Name, unique among the values."""
    producer: str
    """The layer that makes it."""
    consumers: tuple[str, ...]
    """The later layers that read it."""
    bytes: Bytes
    """Size for one microbatch."""
    has_gradient: bool
    """Whether a gradient with the same size flows back."""
    grad_extra_bytes: Bytes = 0
    """Bytes that the value's gradient keeps alive besides its own, as part of a larger tensor.

    They stay until the gradient is added to another consumer's, or copied at a stage border. Only
    layers in `grad_extra_by` make such gradients."""
    grad_extra_by: tuple[str, ...] = ()
    """The consumers that make its gradient as part of a larger tensor."""
    kept_by: tuple[str, ...] = ()
    """The layers, possibly including its producer, whose backward needs it."""
    part_of: str | None = None
    """The other value whose storage it shares; null where it has its own storage.

    It takes no bytes where both are made, or where the other value is received. There the other
    value's `kept_by` covers it too."""


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor from the batch, read by each rank whose layers need it."""

    name: str
    """The input's name in the batch."""
    consumers: tuple[str, ...]
    """The layers that read it."""
    bytes: Bytes
    """Size for one microbatch."""


class TiedParameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One parameter that several layers read. Each stage with such a layer keeps a copy."""

    name: str
    """Parameter name in the user's model."""
    layers: tuple[str, ...]
    """The layers that read it."""
    param_bytes: Bytes
    """Size in bytes."""
    grad_bytes: Bytes
    """Gradient bytes in the parameter's own precision; 0 where it is not trained."""
    num_trainable: Count
    """How many elements are trained."""
    unscattered_grad_bytes: Bytes | msgspec.UnsetType = msgspec.UNSET
    """As for a layer."""


class LayerGraph(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, cache_hash=True
):
    """Layers in a topological order, and the values between them."""

    layers: tuple[Layer, ...]
    """All layers, each after the layers whose values it reads."""
    values: tuple[Value, ...] = ()
    """All values."""
    inputs: tuple[Input, ...] = ()
    """Tensors from the batch."""
    tied: tuple[TiedParameter, ...] = ()
    """Parameters that several layers read."""


def positions(graph: LayerGraph) -> dict[str, int]:
    """Each layer's place in the graph's order, counted from 0."""
    return {layer.name: place for place, layer in enumerate(graph.layers)}


def pair_saving(layer: Layer) -> float:
    """Seconds by which a forward beside a whole backward takes less than both in turn; 0 if unknown."""
    if layer.pair_time is msgspec.UNSET:
        return 0.0
    backward = layer.input_grad_time + layer.weight_grad_time
    saved = layer.forward_time + backward - layer.pair_time
    return max(0.0, min(saved, layer.forward_time, backward))


def has_pair_times(graph: LayerGraph) -> bool:
    """Whether some layer has the time of an overlapped pair."""
    return any(layer.pair_time is not msgspec.UNSET for layer in graph.layers)


def edges(graph: LayerGraph) -> list[tuple[int, int]]:
    """Every (u, v), u < v, where layer v reads a value from layer u; sorted, each once."""
    place = positions(graph)
    pairs = {(place[v.producer], place[c]) for v in graph.values for c in v.consumers}
    return sorted(pairs)


def is_chain(graph: LayerGraph) -> bool:
    """Whether the graph's order is its only topological order."""
    present = set(edges(graph))
    return all((u, u + 1) in present for u in range(len(graph.layers) - 1))


def as_networkx(graph: LayerGraph) -> "nx.DiGraph[int]":
    """The graph over the layers' positions for networkx."""
    directed: nx.DiGraph[int] = nx.DiGraph()
    directed.add_nodes_from(range(len(graph.layers)))
    directed.add_edges_from(edges(graph))
    return directed
