"""Layers with experts under loads that are not equal, as docs/cost-model.md says."""

import math
import random
from fractions import Fraction
from typing import Any

import msgspec

from autopart.records.group_variants import GroupVariant, LayerCollectives, LoadedLayers
from autopart.records.layer_graph import Layer

PARTS = ("recompute", "selective", "split_backward")


def draw_loaded(rng: random.Random, variant: GroupVariant) -> GroupVariant:
    """The variant with the layers that exchange entries under a second load, where it has some."""
    named = {own.layer for own in variant.collectives if _exchanges(own)}
    layers = tuple(_with_more(rng, la) for la in variant.graph.layers if la.name in named)
    if variant.group.expert == 1 or not layers:
        return variant
    return msgspec.structs.replace(variant, loaded=LoadedLayers(imbalance=2, layers=layers))


def _exchanges(own: LayerCollectives) -> bool:
    return any(one.kind == "all_to_all" and one.among == "expert" for one in own.collectives)


def _with_more(rng: random.Random, layer: Layer) -> Layer:
    """The layer with between one and two times its seconds and bytes."""

    def more(own: Any) -> Any:
        if isinstance(own, msgspec.Struct):
            kept = {name: more(getattr(own, name)) for name in own.__struct_fields__}
            return msgspec.structs.replace(own, **kept)
        if isinstance(own, int):
            return own + rng.randint(0, own)
        return own if own is None else own * rng.uniform(1, 2)

    fields = {name: more(getattr(layer, name)) for name in _FIELDS}
    return msgspec.structs.replace(layer, **fields)


_FIELDS = (
    "forward_time",
    "input_grad_time",
    "weight_grad_time",
    "split_time",
    "stash_bytes",
    "workspace_bytes",
    "backward_workspace_bytes",
    *PARTS,
)


def under_load(variant: GroupVariant, imbalance: Fraction) -> GroupVariant:
    """The variant of the fullest GPU: a mixture of both loads, and longer exchanges of entries."""
    if variant.loaded is msgspec.UNSET:
        return variant
    second = {layer.name: layer for layer in variant.loaded.layers}
    share = (imbalance - 1) / (Fraction(variant.loaded.imbalance) - 1)
    layers = tuple(
        _mixed(layer, second[layer.name], share) if layer.name in second else layer
        for layer in variant.graph.layers
    )
    exchanged = tuple(
        LayerCollectives(
            layer=own.layer,
            collectives=tuple(
                msgspec.structs.replace(one, bytes=math.ceil(imbalance * one.bytes))
                if one.kind == "all_to_all" and one.among == "expert"
                else one
                for one in own.collectives
            ),
        )
        for own in variant.collectives
    )
    graph = msgspec.structs.replace(variant.graph, layers=layers)
    return msgspec.structs.replace(variant, graph=graph, collectives=exchanged)


def _mixed(first: Layer, second: Layer, share: Fraction) -> Layer:
    def between(one: Any, other: Any) -> Any:
        if isinstance(one, msgspec.Struct):
            names = one.__struct_fields__
            kept = {name: between(getattr(one, name), getattr(other, name)) for name in names}
            return msgspec.structs.replace(one, **kept)
        if one is None:
            return None
        if isinstance(one, int):
            return math.ceil((1 - share) * one + share * other)
        return float(1 - share) * one + float(share) * other

    fields = {name: between(getattr(first, name), getattr(second, name)) for name in _FIELDS}
    return msgspec.structs.replace(first, **fields)
