"""The rules for a layer graph: unique and known names, edges that go forward, sizes that add up."""

from collections.abc import Iterable

import msgspec

from autopart.errors import ProfileError
from autopart.records.layer_graph import Layer, LayerGraph, positions
from autopart.text import counted
from autopart.units import MOST_BYTES, format_time

ROUNDING = 1e-9
"""Relative difference below which two sums of times are equal."""

MOST_LAYERS = 2_500
"""Layers in the largest graph. Searches have tables with a row and a column for each: about 1 GB."""


def check_graph(graph: LayerGraph, where: str = "layer graph") -> None:
    """Raise ProfileError unless names are unique and known, and every edge goes forward.

    Storage is shared without circles, and sizes keep to 64 bits when they are added up.
    """
    if not graph.layers:
        raise ProfileError(f"{where}: it has no layers")
    if len(graph.layers) > MOST_LAYERS:
        raise ProfileError(
            f"{where}: {len(graph.layers)} layers are too many; at most {MOST_LAYERS} are planned for"
        )
    _check_names_unique(graph, where)
    place = positions(graph)
    _check_names_known(graph, place, where)
    _check_storage(graph, where)
    _check_sums(graph, where)
    _check_readers(graph, place, where)
    for layer in graph.layers:
        _check_pair_time(layer, where)
        if layer.grad_bytes > layer.param_bytes:
            raise ProfileError(
                f"{where}: layer '{layer.name}' has {counted(layer.grad_bytes, 'byte')} of gradients but "
                f"only {counted(layer.param_bytes, 'byte')} of parameters"
            )


def _check_readers(graph: LayerGraph, place: dict[str, int], where: str) -> None:
    """Raise ProfileError where no layer reads a value or tied parameter, or a value goes back."""
    for value in graph.values:
        if not value.consumers:
            raise ProfileError(f"{where}: value '{value.name}' has no consumers; leave it out")
        for consumer in value.consumers:
            if place[consumer] <= place[value.producer]:
                raise ProfileError(
                    f"{where}: value '{value.name}' goes from layer '{value.producer}' back to "
                    f"'{consumer}'; layers must stand in a topological order"
                )
    for tied in graph.tied:
        if not tied.layers:
            raise ProfileError(
                f"{where}: tied parameter '{tied.name}' is read by no layer; leave it out"
            )


def _check_pair_time(layer: Layer, where: str) -> None:
    """Raise ProfileError where an overlapped pair is faster than one of its parts, or slower than both."""
    if layer.pair_time is msgspec.UNSET:
        return
    backward = layer.input_grad_time + layer.weight_grad_time
    least, most = max(layer.forward_time, backward), layer.forward_time + backward
    if not least * (1 - ROUNDING) <= layer.pair_time <= most * (1 + ROUNDING):
        raise ProfileError(
            f"{where}: layer '{layer.name}' has a pair time of {format_time(layer.pair_time)}; a forward "
            f"beside a backward takes from {format_time(least)} to {format_time(most)}"
        )


def _check_names_unique(graph: LayerGraph, where: str) -> None:
    """Raise ProfileError where two items share a name, or a list names a layer twice."""
    lists: list[tuple[str, Iterable[str]]] = [
        ("the file: layer", (layer.name for layer in graph.layers)),
        ("the file: value", (value.name for value in graph.values)),
        ("the file: input", (one.name for one in graph.inputs)),
        ("the file: tied parameter", (one.name for one in graph.tied)),
    ]
    lists += [(f"consumers of value '{v.name}': layer", v.consumers) for v in graph.values]
    lists += [(f"kept_by of value '{v.name}': layer", v.kept_by) for v in graph.values]
    lists += [(f"consumers of input '{i.name}': layer", i.consumers) for i in graph.inputs]
    lists += [(f"layers of tied parameter '{t.name}': layer", t.layers) for t in graph.tied]
    for owner, names in lists:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                place, _, kind = owner.rpartition(": ")
                aside = "" if place == "the file" else f" among the {place}"
                raise ProfileError(f"{where}: {kind} '{name}' appears twice{aside}")
            seen.add(name)


def _check_storage(graph: LayerGraph, where: str) -> None:
    """Raise ProfileError where values are parts of each other in a circle."""
    whole = {v.name: v.part_of for v in graph.values if v.part_of is not None}
    settled: set[str] = set()
    for start in whole:
        path: dict[str, None] = {}
        name: str | None = start
        while name is not None and name not in settled:
            if name in path:
                raise ProfileError(
                    f"{where}: value '{name}' is part of itself, over '{whole[name]}'"
                )
            path[name] = None
            name = whole.get(name)
        settled |= path.keys()


def _check_sums(graph: LayerGraph, where: str) -> None:
    """Raise ProfileError where the sizes of all items, or their trained elements, are absurd."""
    trained = sum(layer.num_trainable for layer in graph.layers)
    for total, said in ((bytes_in(graph), "bytes"), (trained, "trained elements")):
        if total > MOST_BYTES:
            raise ProfileError(
                f"{where}: it has {total} {said} in all; at most {MOST_BYTES} are planned for"
            )


def bytes_in(graph: LayerGraph) -> int:
    """Bytes in all sizes of a layer graph, added up."""
    items: list[msgspec.Struct] = [*graph.layers, *graph.values, *graph.inputs, *graph.tied]
    items += [
        part
        for layer in graph.layers
        for part in (layer.recompute, layer.selective, layer.split_backward)
        if part is not None
    ]
    return sum(_bytes_in_item(item) for item in items)


def _bytes_in_item(item: msgspec.Struct) -> int:
    """Bytes in all sizes of an item."""
    named = ((name, getattr(item, name)) for name in item.__struct_fields__)
    return sum(size or 0 for name, size in named if name.endswith("bytes"))


def _check_names_known(graph: LayerGraph, place: dict[str, int], where: str) -> None:
    """Raise ProfileError where a value, input, parameter or layer names an unknown one."""
    values = {value.name for value in graph.values}
    for value in graph.values:
        if value.part_of is not None and value.part_of not in values - {value.name}:
            raise ProfileError(
                f"{where}: value '{value.name}' is part of '{value.part_of}', which is not another value"
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
