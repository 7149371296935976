"""Layers and the graph that they form, in one fixed topological order.

A layer is never split. A value is a tensor that one layer hands to later ones; it crosses each cut
between its producer and its last consumer exactly once, however many consumers wait behind it.
A model input (token ids, an image, a mask) is read by every rank from its own data loader, so it
crosses no cut.
"""

import msgspec
import networkx as nx

from autopart.errors import ProfileError
from autopart.units import Bytes, Count, Seconds

LOSS = "loss"
"""The kind of the layer that makes the loss of what the model returns."""


class Recompute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What running a layer's forward again in backward, instead of keeping its stash, changes."""

    extra_time: Seconds
    """Seconds added to the layer's backward."""
    stash_bytes: Bytes
    """What still stays per microbatch from forward to backward, apart from the layer's inputs."""


class Halves(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a layer holds for one microbatch where its backward is split into I and W."""

    waiting_bytes: Bytes
    """What I leaves for W: of the stash what W needs, and gradients that I has made; no `Value`s."""
    waiting_value_bytes: Bytes
    """Of `Value`s, what W needs."""
    input_grad_workspace_bytes: Bytes
    """The most that I holds above what is there before it; `waiting_bytes` grow in it. Gradients of values are
    counted as in the layer's `backward_workspace_bytes`, and with those that wait where that is None."""
    weight_grad_workspace_bytes: Bytes
    """The most that W holds above what is there before it."""


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer: its times and bytes for one microbatch on one device."""

    name: str
    """The module path in the user's model, `transformer.h.3`; a second call of it is `…@1`."""
    kind: str
    """The class of the module, `GPT2Block`, or what the layer stands for, `loss`."""
    forward_time: Seconds
    input_grad_time: Seconds
    """The part of the whole backward that I runs: all but W."""
    weight_grad_time: Seconds
    """The part that can wait: gradients of weights (W = B - I)."""
    split_time: Seconds = 0.0
    """Seconds that forward, I and W take more than forward and whole backward."""
    update_time: Seconds = 0.0
    """The optimizer's step over the layer's parameters, once per batch."""
    forward_spread: Seconds = 0.0
    """Interquartile range of the measured `forward_time`; 0 where nothing was measured."""
    input_grad_spread: Seconds = 0.0
    weight_grad_spread: Seconds = 0.0
    forward_flops: Count = 0
    param_bytes: Bytes = 0
    """Every parameter that the layer reads, tied ones included."""
    grad_bytes: Bytes = 0
    """The part of `param_bytes` that is trained, in the parameters' own precision."""
    num_trainable: Count = 0
    """Number of trained parameter elements, tied ones included."""
    buffer_bytes: Bytes = 0
    """Of the layer that makes the loss, with the sum of a step's losses and a few numbers more."""
    stash_bytes: Bytes = 0
    """Kept from forward to backward inside the layer: no parameters, inputs, or `Value`s."""
    workspace_bytes: Bytes = 0
    """The transient peak of a forward above what is kept before and after it; where `backward_workspace_bytes` is
    None of a backward too, with the gradients of values that are there meanwhile."""
    backward_workspace_bytes: Bytes | None = None
    """The transient peak of a backward, and of I in `halves`, above what is there before it: with the gradients that
    it makes, and without those of values that it takes or that wait for other layers."""
    recompute: Recompute | None = None
    """The whole layer run again; None where it cannot be, or keeps nothing inside."""
    selective: Recompute | None = None
    """Only its cheap part run again: all but products with parameters (linear, convolution), whose results
    stay; None where the profile has no such alternative."""
    halves: Halves | None = None
    """None where the profile does not say: then all that a stage keeps stays until W."""
    same_as: str | None = None
    """The identical layer whose measurement this is, or None where it was measured itself."""


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor that one layer hands to later layers."""

    name: str
    producer: str
    consumers: tuple[str, ...]
    bytes: Bytes
    has_gradient: bool
    """Whether a gradient of the same size flows back."""
    grad_extra_bytes: Bytes = 0
    """What its gradient keeps alive beside itself where one of `grad_extra_by` makes it, as a part of a larger
    tensor: until it is added to another reader's, or copied at the border of a stage."""
    grad_extra_by: tuple[str, ...] = ()
    """The readers that make its gradient as a part of a larger tensor."""
    kept_by: tuple[str, ...] = ()
    """The layers, its producer among them perhaps, whose backward needs it."""
    part_of: str | None = None
    """The value in whose storage it lies, of which it takes no room of its own where both are made or the other
    one is received; then `kept_by` says so there. None where it has a storage of its own."""


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor of the batch, read by each rank whose layers need it."""

    name: str
    consumers: tuple[str, ...]
    bytes: Bytes


class TiedParameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One parameter that several layers read: each stage that holds one keeps a copy."""

    name: str
    layers: tuple[str, ...]
    param_bytes: Bytes
    grad_bytes: Bytes
    num_trainable: Count


class LayerGraph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers in a topological order, and the values between them."""

    layers: tuple[Layer, ...]
    values: tuple[Value, ...] = ()
    inputs: tuple[Input, ...] = ()
    tied: tuple[TiedParameter, ...] = ()


def positions(graph: LayerGraph) -> dict[str, int]:
    """The place of each layer in the graph's order, counted from 0."""
    return {layer.name: place for place, layer in enumerate(graph.layers)}


def edges(graph: LayerGraph) -> list[tuple[int, int]]:
    """Every (u, v), u < v, where layer v consumes a value of layer u; sorted, each once."""
    place = positions(graph)
    pairs = {(place[v.producer], place[c]) for v in graph.values for c in v.consumers}
    return sorted(pairs)


def is_chain(graph: LayerGraph) -> bool:
    """Whether the graph's order is its only topological order."""
    present = set(edges(graph))
    return all((u, u + 1) in present for u in range(len(graph.layers) - 1))


def as_networkx(graph: LayerGraph) -> "nx.DiGraph[int]":
    """The layers' positions as a networkx directed graph."""
    directed: nx.DiGraph[int] = nx.DiGraph()
    directed.add_nodes_from(range(len(graph.layers)))
    directed.add_edges_from(edges(graph))
    return directed


def check_graph(graph: LayerGraph, where: str = "layer graph") -> None:
    """Raise ProfileError unless names are unique and known and every edge goes forward."""
    if not graph.layers:
        raise ProfileError(f"{where}: it has no layers")
    place = positions(graph)
    if len(place) != len(graph.layers):
        names = [layer.name for layer in graph.layers]
        twice = next(name for name in names if names.count(name) > 1)
        raise ProfileError(f"{where}: layer '{twice}' stands in it twice")
    _check_names_known(graph, place, where)
    for value in graph.values:
        for consumer in value.consumers:
            if place[consumer] <= place[value.producer]:
                raise ProfileError(
                    f"{where}: value '{value.name}' goes from layer '{value.producer}' back to "
                    f"'{consumer}'; layers must stand in a topological order"
                )
    for layer in graph.layers:
        if layer.grad_bytes > layer.param_bytes:
            raise ProfileError(
                f"{where}: layer '{layer.name}' has {layer.grad_bytes} bytes of gradients but "
                f"only {layer.param_bytes} bytes of parameters"
            )


def _check_names_known(graph: LayerGraph, place: dict[str, int], where: str) -> None:
    values = {value.name for value in graph.values}
    for value in graph.values:
        if value.part_of is not None and value.part_of not in values - {value.name}:
            raise ProfileError(
                f"{where}: value '{value.name}' is a part of '{value.part_of}', which is no other value"
            )
    named = [
        (f"value '{v.name}'", (v.producer, *v.consumers, *v.kept_by, *v.grad_extra_by))
        for v in graph.values
    ]
    named += [(f"input '{i.name}'", i.consumers) for i in graph.inputs]
    named += [(f"tied parameter '{t.name}'", t.layers) for t in graph.tied]
    named += [(f"layer '{la.name}'", (la.same_as,)) for la in graph.layers if la.same_as]
    for owner, names in named:
        for name in names:
            if name not in place:
                raise ProfileError(f"{where}: {owner} names an unknown layer '{name}'")
