"""Profiles with another number of blocks."""

import itertools

import msgspec
import pytest

from autopart.errors import ProfileError
from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.profile import Profile, check_profile, load_profile
from autopart.scaling.blocks import repeat_blocks
from tests.support.places import ROOT


@pytest.fixture(scope="module")
def measured() -> Profile:
    """GPT-2 with eight blocks, measured."""
    return load_profile(ROOT / "profiles" / "gpt2-tiny-cpu-mb4.json")


def sizes(graph: LayerGraph, field: str) -> int:
    return sum(getattr(layer, field) for layer in graph.layers)


@pytest.mark.parametrize("blocks", [3, 7, 12, 40])
def test_bytes_and_parameters_grow_by_whole_blocks(measured: Profile, blocks: int) -> None:
    found = repeat_blocks(measured, blocks)
    check_profile(found, "the test")
    (inner,) = (layer for layer in measured.graph.layers if layer.name == "blocks.1")
    more = blocks - 8
    assert len(found.graph.layers) == len(measured.graph.layers) + more
    for field in ("param_bytes", "grad_bytes", "stash_bytes", "forward_flops", "num_trainable"):
        grown = sizes(measured.graph, field) + more * getattr(inner, field)
        assert sizes(found.graph, field) == grown
    assert found.source.num_params == measured.source.num_params + more * inner.num_trainable
    assert found.warnings[-1].startswith(f"8 blocks 'blocks.*' were scaled to {blocks}")
    numbers = [la.name for la in found.graph.layers if la.name.startswith("blocks.")]
    assert numbers == [f"blocks.{number}" for number in range(blocks)]


def test_each_value_goes_to_the_next_block(measured: Profile) -> None:
    found = repeat_blocks(measured, 5)
    flow = {
        (value.producer, value.consumers, value.bytes)
        for value in found.graph.values
        if value.producer.startswith("blocks.")
    }
    (size,) = {size for _, _, size in flow}
    chain = [f"blocks.{number}" for number in range(5)]
    for here, there in itertools.pairwise(chain):
        assert (here, (there,), size) in flow
    assert len({value.name for value in found.graph.values}) == len(found.graph.values)


def test_fewer_blocks_and_then_as_many_as_before_are_the_same_layers(measured: Profile) -> None:
    again = repeat_blocks(repeat_blocks(measured, 4), 8)

    def unlike(layer: Layer) -> Layer:
        return msgspec.structs.replace(layer, same_as=None)

    own, there = ([*map(unlike, p.graph.layers)] for p in (again, measured))
    assert own == there


def test_layers_that_do_not_repeat_are_refused_in_one_line(measured: Profile) -> None:
    layers = [
        msgspec.structs.replace(layer, stash_bytes=layer.stash_bytes + (layer.name == "blocks.4"))
        for layer in measured.graph.layers
    ]
    graph = msgspec.structs.replace(measured.graph, layers=tuple(layers))
    with pytest.raises(ProfileError, match=r"'blocks\.4' differs from 'blocks\.1', so"):
        repeat_blocks(msgspec.structs.replace(measured, graph=graph), 12)
    with pytest.raises(ProfileError, match="--blocks 2: it must be 3 to"):
        repeat_blocks(measured, 2)
    unet = load_profile(ROOT / "profiles" / "unet-tiny-cpu-mb4.json")
    with pytest.raises(ProfileError, match="--blocks: "):
        repeat_blocks(unet, 12)


def test_as_many_blocks_as_before_change_nothing(measured: Profile) -> None:
    assert repeat_blocks(measured, 8) is measured
