"""Profiles of models with many equal blocks, from a profile with three.

Blocks are called `blocks.0`, `blocks.1`, … All between the first and the last are alike. So a model with three blocks is
profiled, and the inner one is repeated: the profiler runs three blocks in place of a hundred.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from autopart.records.group_variants import GroupVariant, LayerCollectives
from autopart.records.layer_graph import LayerGraph, Value
from autopart.records.profile import Profile

INNER, LAST = 1, 2
"""Blocks of the profiled models, which have three."""
T = TypeVar("T")


def with_blocks(profile: Profile, blocks: int) -> Profile:
    """The profile with so many blocks, at least three, in its graph and in all tensor variants.

    Values of blocks get the number of their block behind their names. The figures of the whole model stay those of
    three blocks.
    """
    assert blocks > LAST
    return msgspec.structs.replace(
        profile,
        graph=_graph(profile.graph, blocks),
        variants=tuple(_variant(variant, blocks) for variant in profile.variants),
    )


def block_of(layer: str) -> int | None:
    """The number of a layer's block; None for a layer outside of the blocks."""
    kind, _, rest = layer.partition(".")
    return int(rest.partition(".")[0]) if kind == "blocks" else None


def _variant(variant: GroupVariant, blocks: int) -> GroupVariant:
    calls = _repeated(variant.collectives, lambda own: own.layer, blocks)
    return msgspec.structs.replace(
        variant,
        graph=_graph(variant.graph, blocks),
        collectives=tuple(
            LayerCollectives(layer=_moved(own.layer, by), collectives=own.collectives)
            for own, by in calls
        ),
    )


def _graph(graph: LayerGraph, blocks: int) -> LayerGraph:
    homes = {value.name: block_of(value.producer) for value in graph.values}

    def copied(value: Value, by: int) -> Value:
        renamed = {
            field: tuple(_moved(name, by) for name in getattr(value, field))
            for field in ("consumers", "kept_by", "grad_extra_by")
        }
        owner = value.part_of
        return msgspec.structs.replace(
            value,
            name=_value_name(value.name, homes[value.name], by),
            producer=_moved(value.producer, by),
            part_of=owner and _value_name(owner, homes[owner], by),
            **renamed,
        )

    layers = _repeated(graph.layers, lambda layer: layer.name, blocks)
    values = _repeated(graph.values, lambda value: value.producer, blocks)
    return msgspec.structs.replace(
        graph,
        layers=tuple(
            msgspec.structs.replace(layer, name=_moved(layer.name, by)) for layer, by in layers
        ),
        values=tuple(copied(value, by) for value, by in values),
    )


def _repeated(
    items: Sequence[T], layer_of: Callable[[T], str], blocks: int
) -> Iterator[tuple[T, int]]:
    """Each item with the number of blocks by which it moves. Those of the inner block come several times."""
    for home, group in itertools.groupby(items, lambda item: block_of(layer_of(item))):
        own = list(group)
        moves: dict[int | None, Sequence[int]] = {
            None: (0,),
            INNER: range(blocks - LAST),
            LAST: (blocks - LAST - 1,),
        }
        yield from ((item, by) for by in moves.get(home, (0,)) for item in own)


def _moved(layer: str, by: int) -> str:
    """A layer's name so many blocks later."""
    home = block_of(layer)
    if home is None:
        return layer
    _, _, *inside = layer.split(".")
    return ".".join(("blocks", str(home + by), *inside))


def _value_name(name: str, home: int | None, by: int) -> str:
    return name if home is None else f"{name}@{home + by}"
