"""A profile with another number of blocks: the inner block is repeated, or inner blocks are left out.

Blocks are modules in a numbered list, such as `h.0`, `h.1`, … The first and the last may differ from the others. All between
them must have the same layers with the same bytes, so the bytes of another number of them are exact.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from autopart.errors import ProfileError
from autopart.records.graph_check import check_graph
from autopart.records.layer_graph import Layer, LayerGraph, Value
from autopart.records.profile import Profile

T = TypeVar("T")
LEAST = 3
"""Blocks of a profile that can be repeated: a first, an inner and a last one."""
MOST = 4096
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_TIMES = (
    "forward_time", "input_grad_time", "weight_grad_time", "split_time", "pair_time", "update_time",
    "forward_spread", "input_grad_spread", "weight_grad_spread", "same_as", "recompute", "selective", "name",
    "unshared_update_time", "memory_share",
)  # fmt: skip
"""Fields in which alike blocks may differ."""


class _Blocks(NamedTuple):
    """The numbered blocks of a graph."""

    prefix: str
    """The list's name with its dot: `h.`."""
    total: int

    def number(self, layer: str) -> int | None:
        """The number of a layer's block; None for a layer outside of the blocks."""
        found = re.match(rf"{re.escape(self.prefix)}(\d+)(?=[.@]|$)", layer)
        return None if found is None else int(found[1])

    def moved(self, layer: str, by: int) -> str:
        """A layer's name so many blocks later; names outside of the blocks stay."""
        own = self.number(layer)
        if own is None or by == 0:
            return layer
        return f"{self.prefix}{own + by}{layer[len(f'{self.prefix}{own}') :]}"


def repeat_blocks(profile: Profile, blocks: int) -> Profile:
    """The profile with so many blocks. Seconds of an inner block are those of the profile's second block.

    Raises ProfileError where no three blocks stand in a list, inner ones differ, or a value passes over a block.
    """
    if not LEAST <= blocks <= MOST:
        raise ProfileError(f"--blocks {blocks}: it must be {LEAST} to {MOST}")
    found = _blocks_of(profile.graph)
    if blocks == found.total:
        return profile
    graph = _repeated(profile.graph, found, blocks)
    check_graph(graph, f"{blocks} blocks")
    inner = [layer for layer in profile.graph.layers if found.number(layer.name) == 1]
    each = sum(layer.param_bytes for layer in inner) // _BYTES.get(profile.dtype, 4)
    source = msgspec.structs.replace(
        profile.source,
        graph_hash=f"{profile.source.graph_hash}-{blocks}-blocks",
        num_params=profile.source.num_params + (blocks - found.total) * each,
    )
    told = (
        f"{found.total} blocks '{found.prefix}*' were scaled to {blocks}: each inner block as '{found.prefix}1', "
        "the first and the last as they were"
    )
    return msgspec.structs.replace(
        profile,
        source=source,
        graph=graph,
        variants=(),
        whole=None,
        warnings=(*profile.warnings, told),
    )


def _blocks_of(graph: LayerGraph) -> _Blocks:
    """The longest numbered list of the graph's layers; raises ProfileError unless its inner blocks are alike."""
    numbers: dict[str, set[int]] = {}
    for layer in graph.layers:
        for found in re.finditer(r"(?:^|(?<=\.))(\d+)(?=[.@]|$)", layer.name):
            numbers.setdefault(layer.name[: found.start()], set()).add(int(found[1]))
    counts = {p: len(own) for p, own in numbers.items() if own == set(range(len(own)))}
    if not counts or max(counts.values()) < LEAST:
        raise ProfileError(
            f"--blocks: no list with at least {LEAST} blocks is among the layers, so none can be repeated"
        )
    found = _Blocks(max(counts, key=counts.__getitem__), max(counts.values()))
    second = [_alike(layer, found) for layer in graph.layers if found.number(layer.name) == 1]
    for number in range(2, found.total - 1):
        own = [_alike(layer, found) for layer in graph.layers if found.number(layer.name) == number]
        if own != second:
            raise ProfileError(
                f"--blocks: '{found.prefix}{number}' differs from '{found.prefix}1', so blocks do not repeat"
            )
    return found


def _alike(layer: Layer, blocks: _Blocks) -> tuple[object, ...]:
    """What alike layers of two blocks share: the name within the block, sizes, and bytes."""
    own = blocks.number(layer.name)
    fields = {
        name: value for name, value in msgspec.structs.asdict(layer).items() if name not in _TIMES
    }
    kept = tuple(
        None if way is None else way.stash_bytes for way in (layer.recompute, layer.selective)
    )
    return layer.name[len(f"{blocks.prefix}{own}") :], tuple(fields.items()), kept


def _repeated(graph: LayerGraph, blocks: _Blocks, count: int) -> LayerGraph:
    layers = [
        msgspec.structs.replace(
            layer,
            name=blocks.moved(layer.name, by),
            same_as=_first_of(layer.same_as, blocks, count),
        )
        for layer, by in _moves(graph.layers, [la.name for la in graph.layers], blocks, count)
    ]
    producers = [value.producer for value in graph.values]
    homes = {value.name: blocks.number(value.producer) for value in graph.values}
    values = [
        _moved_value(value, by, blocks, count, homes)
        for value, by in _moves(graph.values, producers, blocks, count)
    ]
    inputs = [
        msgspec.structs.replace(one, consumers=_spread(one.consumers, blocks, count, one.name))
        for one in graph.inputs
    ]
    for tied in graph.tied:
        if any(blocks.number(layer) is not None for layer in tied.layers):
            raise ProfileError(f"--blocks: '{tied.name}' is shared by blocks, which cannot repeat")
    return msgspec.structs.replace(
        graph, layers=tuple(layers), values=tuple(values), inputs=tuple(inputs)
    )


def _first_of(same_as: str | None, blocks: _Blocks, count: int) -> str | None:
    """The layer that was measured: of an inner block the second one, which stays; the last one moves."""
    number = None if same_as is None else blocks.number(same_as)
    if same_as is None or number is None or number in (0, 1):
        return same_as
    if number == blocks.total - 1:
        return blocks.moved(same_as, count - blocks.total)
    return blocks.moved(same_as, 1 - number)


def _moves(
    items: Sequence[T], layers: Sequence[str], blocks: _Blocks, count: int
) -> Iterator[tuple[T, int]]:
    """Each item with the blocks by which it moves: those of the second block come once for each inner block."""
    second = [item for item, name in zip(items, layers, strict=True) if blocks.number(name) == 1]
    placed = False
    for item, name in zip(items, layers, strict=True):
        number = blocks.number(name)
        if number is None or number == 0:
            yield item, 0
        elif number == blocks.total - 1:
            yield item, count - blocks.total
        elif not placed:
            placed = True
            yield from ((own, by) for by in range(count - 2) for own in second)


def _moved_value(
    value: Value, by: int, blocks: _Blocks, count: int, homes: dict[str, int | None]
) -> Value:
    home, owner = homes[value.name], value.part_of
    if home is None:
        fields = {
            field: _spread(getattr(value, field), blocks, count, value.name)
            for field in ("consumers", "kept_by", "grad_extra_by")
        }
        return msgspec.structs.replace(value, **fields)
    for name in value.consumers:
        number = blocks.number(name)
        if (number is None and home != blocks.total - 1) or (number or home) > home + 1:
            raise ProfileError(
                f"--blocks: value '{value.name}' of block {home} goes to '{name}', past the next block"
            )
    fields = {
        field: tuple(blocks.moved(name, by) for name in getattr(value, field))
        for field in ("consumers", "kept_by", "grad_extra_by")
    }
    same_home = owner is not None and homes.get(owner) == home
    return msgspec.structs.replace(
        value,
        name=f"{value.name}@{home + by}",
        producer=blocks.moved(value.producer, by),
        part_of=f"{owner}@{home + by}" if same_home else owner,
        **fields,
    )


def _spread(names: Sequence[str], blocks: _Blocks, count: int, of: str) -> tuple[str, ...]:
    """Readers of a tensor from outside of the blocks: no block, the first one, or all of them."""
    numbers = {blocks.number(name) for name in names} - {None}
    if numbers <= {0}:
        return tuple(names)
    if len(numbers) == 1 and numbers == {blocks.total - 1}:
        return tuple(blocks.moved(name, count - blocks.total) for name in names)
    if numbers != set(range(blocks.total)):
        raise ProfileError(f"--blocks: '{of}' is read by some blocks only, so they do not repeat")
    return tuple(blocks.moved(name, by) for name, by in _moves(names, names, blocks, count))
