"""The layers of the GPU with the fullest experts, from those under balanced load.

A profile has each layer with experts twice: under balanced load, and for a GPU that gets k times the mean. Work on entries is
proportional to their number, and all other work does not depend on it.

Symbols   h      imbalance: entries of the fullest GPU divided by the mean, 1 to e
          x_1    seconds or bytes under balanced load;  x_k with k times the mean

    at imbalance h      x_1 + (h - 1) (x_k - x_1) / (k - 1)
    an all-to-all       h times the bytes: the fullest GPU gets, and sends back, h times as many entries

(x_k - x_1) / (k - 1) is the experts' part of x. A time that is the larger one of arithmetic and memory traffic is convex in
the entries, and so is a peak. Between 1 and k the line lies above it. An analytic profile has k = e, so always.
"""

import math
from typing import NamedTuple

import msgspec

from autopart.errors import AutopartError
from autopart.records.expert_load import AssumedLoad, Uneven, uneven
from autopart.records.group_variants import (
    GroupVariant,
    LayerCollectives,
    LoadedLayers,
    exchanges_entries,
)
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, SplitBackward
from autopart.records.rank_group import group_name

_TIMES = ("forward_time", "input_grad_time", "weight_grad_time", "split_time")
_BYTES = ("stash_bytes", "workspace_bytes")


def with_load(variant: GroupVariant, assumed: AssumedLoad | msgspec.UnsetType) -> GroupVariant:
    """The variant's layers and collectives under the assumed load of experts; `variant` has balanced load.

    Raises AutopartError where the profile says nothing of other loads, or the assumption nothing of a layer.
    """
    degree = variant.group.expert
    if assumed is msgspec.UNSET:
        return variant
    if not any(map(exchanges_entries, variant.collectives)):
        raise AutopartError(
            f"{group_name(variant.group)}: every expert of the model sees every token, so that all loads are equal; leave "
            "out --expert-imbalance"
        )
    line = {} if variant.loaded is msgspec.UNSET else _line(variant.graph, variant.loaded)
    measured = () if variant.loads is msgspec.UNSET else variant.loads
    loads: dict[str, Uneven] = {}
    for own in variant.collectives:
        if exchanges_entries(own):
            if own.layer not in line:
                raise AutopartError(
                    f"{group_name(variant.group)}: the profile has layer '{own.layer}' under balanced load only; "
                    "profile the model again for --expert-imbalance"
                )
            loads[own.layer] = uneven(assumed, own.layer, degree, measured)
    layers = tuple(
        line[layer.name].at(loads[layer.name]) if layer.name in loads else layer
        for layer in variant.graph.layers
    )
    return msgspec.structs.replace(
        variant,
        graph=msgspec.structs.replace(variant.graph, layers=layers),
        collectives=tuple(
            exchanged(own, loads[own.layer].of_seconds) if own.layer in loads else own
            for own in variant.collectives
        ),
    )


class ExpertsPart(NamedTuple):
    """Seconds of one layer's F and B that belong to its experts."""

    forward: float
    backward: float


def experts_parts(
    variant: GroupVariant, assumed: AssumedLoad | msgspec.UnsetType
) -> dict[str, ExpertsPart]:
    """For each loaded layer the experts' part under a load: h (x_k - x_1) / (k - 1). `variant` has balanced load."""
    line = {} if variant.loaded is msgspec.UNSET else _line(variant.graph, variant.loaded)
    measured = () if variant.loads is msgspec.UNSET else variant.loads
    found: dict[str, ExpertsPart] = {}
    for name, own in line.items():
        h = 1.0
        if assumed is not msgspec.UNSET:
            h = uneven(assumed, name, variant.group.expert, measured).of_seconds
        least, most = own.balanced, own.loaded
        backward = most.input_grad_time - least.input_grad_time
        backward += most.weight_grad_time - least.weight_grad_time
        share = h / (own.k - 1)
        forward = max(0.0, most.forward_time - least.forward_time)
        found[name] = ExpertsPart(share * forward, share * max(0.0, backward))
    return found


def exchanged(own: LayerCollectives, imbalance: float) -> LayerCollectives:
    """The layer's collectives as the fullest GPU has them: more entries in the all-to-alls among experts."""
    return LayerCollectives(
        layer=own.layer,
        collectives=tuple(
            msgspec.structs.replace(one, bytes=math.ceil(imbalance * one.bytes))
            if one.kind == "all_to_all" and one.among == "expert"
            else one
            for one in own.collectives
        ),
    )


def _line(graph: LayerGraph, loaded: LoadedLayers) -> dict[str, "_Line"]:
    """For each loaded layer the line on which every load lies."""
    more = {layer.name: layer for layer in loaded.layers}
    return {
        layer.name: _Line(layer, more[layer.name], loaded.imbalance)
        for layer in graph.layers
        if layer.name in more
    }


class _Line(NamedTuple):
    """A layer under balanced load, and under an imbalance of k."""

    balanced: Layer
    loaded: Layer
    k: float

    def at(self, load: Uneven) -> Layer:
        """The layer under a load."""
        least, most = self.balanced, self.loaded
        found = msgspec.structs.replace(
            least,
            **{n: self._seconds(load, getattr(least, n), getattr(most, n)) for n in _TIMES},
            **{n: self._bytes(load, getattr(least, n), getattr(most, n)) for n in _BYTES},
            backward_workspace_bytes=None
            if least.backward_workspace_bytes is None or most.backward_workspace_bytes is None
            else self._bytes(load, least.backward_workspace_bytes, most.backward_workspace_bytes),
            recompute=self._again(load, least.recompute, most.recompute),
            selective=self._again(load, least.selective, most.selective),
            split_backward=self._split(load, least.split_backward, most.split_backward),
        )
        return msgspec.structs.replace(found, pair_time=self._pair_time(load, found))

    def _seconds(self, load: Uneven, least: float, most: float) -> float:
        # Measured times scatter: a layer is never faster with more entries.
        return least + (load.of_seconds - 1) / (self.k - 1) * max(0.0, most - least)

    def _bytes(self, load: Uneven, least: int, most: int) -> int:
        return least + math.ceil((load.of_bytes - 1) / (self.k - 1) * max(0, most - least))

    def _again(
        self, load: Uneven, least: Recompute | None, most: Recompute | None
    ) -> Recompute | None:
        if least is None or most is None:
            return None
        return Recompute(
            extra_time=self._seconds(load, least.extra_time, most.extra_time),
            stash_bytes=self._bytes(load, least.stash_bytes, most.stash_bytes),
        )

    def _split(
        self, load: Uneven, least: SplitBackward | None, most: SplitBackward | None
    ) -> SplitBackward | None:
        if least is None or most is None:
            return None
        names = SplitBackward.__struct_fields__
        return SplitBackward(
            **{n: self._bytes(load, getattr(least, n), getattr(most, n)) for n in names}
        )

    def _pair_time(self, load: Uneven, found: Layer) -> float | msgspec.UnsetType:
        """Seconds of a pair: at least the longer of its parts, at most both in turn."""
        least, most = self.balanced.pair_time, self.loaded.pair_time
        if least is msgspec.UNSET or most is msgspec.UNSET:
            return msgspec.UNSET
        whole = found.input_grad_time + found.weight_grad_time
        own = self._seconds(load, least, most)
        return min(max(own, found.forward_time, whole), found.forward_time + whole)
