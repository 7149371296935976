"""A model's layers as one GPU of a rank group runs them: the variants in a profile.

A variant has the seconds and bytes of one GPU, without collectives. The collectives are listed beside the layers,
because their seconds depend on the cluster. docs/tensor-parallel.md has the formulas.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from autopart.errors import ProfileError
from autopart.records.expert_load import Imbalance, LayerLoad, check_load
from autopart.records.graph_check import check_graph
from autopart.records.layer_graph import Layer, LayerGraph, positions
from autopart.records.rank_group import (
    Among,
    Group,
    group_name,
    has_ring,
    is_tensor_only,
    places_among,
)
from autopart.text import counted
from autopart.units import MOST_BYTES, Bytes, Seconds

Phase = Literal["forward", "input_grad", "weight_grad", "step"]


class Collective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One collective of a layer among GPUs of its rank group."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ring"]
    """The collective. In a ring, each GPU hands its block of the tensor on until all have had it; in a backward, the
    blocks' gradients follow them."""
    bytes: Bytes
    """Bytes of the whole tensor, before a reduce-scatter or behind an all-gather; of all that a GPU sends in an all-to-all,
    with what it keeps."""
    phase: Phase
    """The part of the layer that it belongs to. "step" runs once per batch, the others per microbatch."""
    beneath: Literal["weight_grad"] | None = None
    """The work that hides it: the layer's W, beside which a collective of I may run; null where none does."""
    recomputed: bool = False
    """Whether a collective of the forward runs again where the layer is recomputed, as a whole or selectively."""
    among: Among | msgspec.UnsetType = msgspec.UNSET
    """The GPUs that it joins: those that share a tensor, a sequence, experts or the state; absent for a tensor."""
    compute_time: Seconds | msgspec.UnsetType = msgspec.UNSET
    """Seconds of the attention that runs block by block beneath a ring's messages; absent for other kinds."""


class LayerCollectives(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The collectives of one layer."""

    layer: str
    """The layer's name."""
    collectives: tuple[Collective, ...]
    """Its collectives, in the order in which they run."""


class LoadedLayers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers with experts as a GPU runs them that gets more entries than the others of its group."""

    imbalance: Imbalance
    """The imbalance: its entries divided by the mean."""
    layers: tuple[Layer, ...]
    """The layers that exchange entries of experts, under this load."""


class GroupVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers as one GPU of a rank group runs them."""

    group: Group
    """The rank group."""
    graph: LayerGraph
    """The profile's layers and values with the seconds and bytes of one GPU, without collectives.

    A value's bytes are the bytes that one GPU sends: 1/t where tensor degree t splits the sequence."""
    collectives: tuple[LayerCollectives, ...] = ()
    """The collectives of each layer that has some."""
    loaded: LoadedLayers | msgspec.UnsetType = msgspec.UNSET
    """The layers that exchange entries of experts under another load; in `graph` all loads are equal.

    Absent where nothing is exchanged, and in older profiles."""
    loads: tuple[LayerLoad, ...] | msgspec.UnsetType = msgspec.UNSET
    """The imbalance of these layers on the example batch; absent where the model did not run."""


def exchanges_entries(own: LayerCollectives) -> bool:
    """Whether a layer sends entries of tokens to the ranks of their experts."""
    return any(one.kind == "all_to_all" and one.among == "expert" for one in own.collectives)


def groups_listed(variants: Sequence[GroupVariant]) -> str:
    """The degrees that a profile has, such as "1, 2, context degree 2, tensor degree 2 and context degree 2"."""
    own = sorted(
        (one.group for one in variants),
        key=lambda one: (
            one.context,
            has_ring(one),
            one.expert,
            one.tensor,
            one.sequence_parallel,
        ),
    )
    words = [group_name(one).replace(", ", " and ") for one in own]
    names = [
        name.removeprefix("tensor degree " * is_tensor_only(one))
        for one, name in zip(own, words, strict=True)
    ]
    return ", ".join(["1", *names])


def check_variants(graph: LayerGraph, variants: Sequence[GroupVariant], where: str) -> None:
    """Raise ProfileError, with the place, where a variant contradicts the profile's graph or itself.

    A variant has the graph's layers, values, inputs and tied parameters, in its order. No group stands twice.
    Sharded state is computed from these variants, and so has none of its own.
    """
    seen: set[Group] = set()
    for variant in variants:
        place = f"{where}: {group_name(variant.group)}"
        if variant.group in seen:
            raise ProfileError(f"{place} stands twice")
        seen.add(variant.group)
        if variant.group.data > 1:
            raise ProfileError(f"{place}: a profile has no variant with sharded state")
        check_graph(variant.graph, place)
        _check_same_items(graph, variant.graph, place)
        _check_collectives(variant, place)
        _check_loads(variant, place)


def _check_same_items(graph: LayerGraph, own: LayerGraph, where: str) -> None:
    """Raise ProfileError unless a variant's graph has the items of the profile's, in the same order."""
    for kind, theirs, mine in zip(_KINDS, _items(graph), _items(own), strict=True):
        if len(mine) != len(theirs):
            raise ProfileError(
                f"{where}: it has {counted(len(mine), kind)}, the profile {len(theirs)}"
            )
        for at, (said, given) in enumerate(zip(mine, theirs, strict=True)):
            if said[0] != given[0]:
                raise ProfileError(
                    f"{where}: {kind} {at} is '{said[0]}', in the profile '{given[0]}'"
                )
            if said != given:
                raise ProfileError(
                    f"{where}: {kind} '{said[0]}' has another kind or other connections in the profile"
                )


_KINDS = ("layer", "value", "input", "tied parameter")


def _items(graph: LayerGraph) -> Iterator[list[tuple[object, ...]]]:
    """The graph's items of each kind, each as its name and its connections."""
    yield [(layer.name, layer.kind) for layer in graph.layers]
    yield [(v.name, v.producer, v.consumers, v.has_gradient) for v in graph.values]
    yield [(one.name, one.consumers) for one in graph.inputs]
    yield [(one.name, one.layers) for one in graph.tied]


def _check_loads(variant: GroupVariant, where: str) -> None:
    """Raise ProfileError where loaded layers are no layers of the variant, or an imbalance is impossible."""
    own = {layer.name: layer.kind for layer in variant.graph.layers}
    if variant.loaded is not msgspec.UNSET:
        share, listed = variant.loaded.imbalance, variant.loaded.layers
        if not 1 < share <= variant.group.expert:
            raise ProfileError(
                f"{where}: loaded layers have an imbalance of {share:g}; it is above 1, and at most the expert degree"
            )
        loaded: dict[str, Layer] = {}
        for layer in listed:
            if own.get(layer.name) != layer.kind or layer.name in loaded:
                raise ProfileError(
                    f"{where}: loaded layer '{layer.name}' is unknown, of another kind, or stands twice"
                )
            loaded[layer.name] = layer
        layers = tuple(loaded.get(layer.name, layer) for layer in variant.graph.layers)
        check_graph(
            msgspec.structs.replace(variant.graph, layers=layers), f"{where}: loaded layers"
        )
    for one in () if variant.loads is msgspec.UNSET else variant.loads:
        if one.layer not in own or one.expert != variant.group.expert:
            raise ProfileError(
                f"{where}: an imbalance is for layer '{one.layer}' with expert degree {one.expert}"
            )
        check_load(one, where)


def _check_collectives(variant: GroupVariant, where: str) -> None:
    """Raise ProfileError where collectives name another layer, contradict themselves or are absurd."""
    known, seen = positions(variant.graph), set[str]()
    for own in variant.collectives:
        if own.layer not in known:
            raise ProfileError(f"{where}: collectives name an unknown layer '{own.layer}'")
        if own.layer in seen:
            raise ProfileError(f"{where}: layer '{own.layer}' has two lists of collectives")
        seen.add(own.layer)
        for at, one in enumerate(own.collectives):
            place = f"{where}: collective {at} of layer '{own.layer}'"
            if one.beneath is not None and one.phase != "input_grad":
                raise ProfileError(f"{place} is hidden beneath W, but belongs to {one.phase}")
            among = one.among
            if isinstance(among, str) and len(places_among(variant.group, among)) == 1:
                raise ProfileError(
                    f"{place} is among '{among}', and the group has {among} degree 1"
                )
            if one.recomputed and one.phase != "forward":
                raise ProfileError(f"{place} is recomputed, but belongs to {one.phase}")
            if fault := _fault_of_ring(one, variant.group):
                raise ProfileError(f"{place} {fault}")
    total = sum(one.bytes for own in variant.collectives for one in own.collectives)
    if total > MOST_BYTES:
        raise ProfileError(
            f"{where}: its collectives have {counted(total, 'byte')} in all; at most {MOST_BYTES} are planned for"
        )


def _fault_of_ring(one: Collective, group: Group) -> str | None:
    """What contradicts itself in a ring, or in another collective with a ring's field; None where nothing does."""
    if one.kind != "ring":
        has_field = one.compute_time is not msgspec.UNSET
        return f"is no ring, but {one.kind} with a compute_time" if has_field else None
    if one.among != "context" or not has_ring(group):
        return "is a ring, which only context ranks with ring exchange have"
    if one.phase not in ("forward", "input_grad") or one.beneath is not None:
        return "is a ring, which belongs to forward or input_grad, beneath its attention"
    return "is a ring without compute_time" if one.compute_time is msgspec.UNSET else None
