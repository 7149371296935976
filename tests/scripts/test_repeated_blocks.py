"""Profiles whose inner block is repeated, beside the profile of the whole model."""

import dataclasses

import msgspec
import pytest

from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Profile
from autopart.runtime.profiling import profiled_model
from autopart.runtime.profiling.profiler import profile_model
from autopart.zoo.llama import SIZES, Llama
from autopart.zoo.source import ModelSource
from autopart.zoo.tokens import language_source
from tests.support.scripts import load_script

with_blocks = load_script("repeated_blocks").with_blocks


def profile_with(blocks: int, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The tiny Llama with so many blocks, on meta, with degree 2 and sequence parallelism."""
    size = dataclasses.replace(SIZES["tiny"], layers=blocks)

    def source(name: str) -> ModelSource:
        return language_source(name, lambda: Llama(size), size.vocabulary, size.length)

    monkeypatch.setattr(profiled_model, "load_model", source)
    return profile_model(
        "llama", device="meta", gpu="h100-sxm", tensor=(2,), sequence_parallel=True
    )


def without_names(graph: LayerGraph) -> LayerGraph:
    """The graph with its values numbered, in a fixed order, and without the spreads of layer times.

    Equal layers share one spread. The first of them makes tables for the others, so it depends on their number.
    """
    values = sorted(graph.values, key=lambda v: (v.producer, v.consumers, v.bytes))
    number = {value.name: f"value {place}" for place, value in enumerate(values)}
    return msgspec.structs.replace(
        graph,
        layers=tuple(
            msgspec.structs.replace(
                layer, forward_spread=0.0, input_grad_spread=0.0, weight_grad_spread=0.0
            )
            for layer in graph.layers
        ),
        values=tuple(
            msgspec.structs.replace(
                value, name=number[value.name], part_of=value.part_of and number[value.part_of]
            )
            for value in values
        ),
    )


@pytest.mark.long
def test_a_repeated_inner_block_gives_the_profile_of_the_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, whole = (profile_with(blocks, monkeypatch) for blocks in (3, 4))
    assert without_names(with_blocks(few, 3).graph) == without_names(few.graph)
    made = with_blocks(few, 4)
    assert len(made.graph.layers) == len(few.graph.layers) + 1
    assert without_names(made.graph) == without_names(whole.graph)
    for own, wanted in zip(made.variants, whole.variants, strict=True):
        assert without_names(own.graph) == without_names(wanted.graph)
        assert own.collectives == wanted.collectives
