import msgspec
import pytest

from autopart.errors import ProfileError
from autopart.records.graph_check import check_graph
from autopart.records.layer_graph import (
    Input,
    LayerGraph,
    TiedParameter,
    as_networkx,
    edges,
    is_chain,
    pair_saving,
)
from tests.support.problems import chain_graph, layer, value


def test_a_row_of_layers_is_a_chain_and_stays_one_with_skips():
    graph = chain_graph(layer("a"), layer("b"), layer("c"))
    assert is_chain(graph)
    skip = LayerGraph(layers=graph.layers, values=(*graph.values, value("a", "c")))
    assert is_chain(skip)
    assert edges(skip) == [(0, 1), (0, 2), (1, 2)]
    assert sorted(as_networkx(skip).edges) == [(0, 1), (0, 2), (1, 2)]


def test_two_branches_are_no_chain():
    layers = (layer("a"), layer("left"), layer("right"), layer("join"))
    values = (value("a", "left", "right"), value("left", "join"), value("right", "join"))
    assert not is_chain(LayerGraph(layers=layers, values=values))


def test_a_graph_without_layers_is_refused():
    with pytest.raises(ProfileError, match="it has no layers"):
        check_graph(LayerGraph(layers=()))


def test_a_layer_that_stands_twice_is_named():
    with pytest.raises(ProfileError, match="layer 'a' appears twice"):
        check_graph(LayerGraph(layers=(layer("a"), layer("a"))))


@pytest.mark.parametrize("part_of", ["b.out", "a.out"])
def test_a_value_that_is_part_of_no_other_is_named(part_of: str):
    own = msgspec.structs.replace(value("a", "b"), part_of=part_of)
    graph = LayerGraph(layers=(layer("a"), layer("b")), values=(own,))
    with pytest.raises(ProfileError, match=rf"value 'a\.out' is part of '{part_of}'"):
        check_graph(graph)


@pytest.mark.parametrize("pair_time", [1.9, 3.1])
def test_a_pair_that_is_faster_than_one_part_or_slower_than_both_is_refused(pair_time: float):
    """A forward takes 1 s, a backward 2 s."""
    with pytest.raises(
        ProfileError, match=r"layer 'a' has a pair time .* takes from 2.00 s to 3.00 s"
    ):
        check_graph(LayerGraph(layers=(layer("a", pair_time=pair_time),)))
    for able in (2.0, 2.5, 3.0):
        one = layer("a", pair_time=able)
        check_graph(LayerGraph(layers=(one,)))
        assert pair_saving(one) == 3.0 - able
    assert pair_saving(layer("a")) == 0.0


def test_an_edge_that_goes_back_is_named():
    graph = LayerGraph(layers=(layer("a"), layer("b")), values=(value("b", "a"),))
    with pytest.raises(ProfileError, match=r"'b\.out' goes from layer 'b' back to 'a'"):
        check_graph(graph)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (LayerGraph(layers=(layer("a"),), values=(value("a", "x"),)), "value 'a.out'"),
        (
            LayerGraph(
                layers=(layer("a"),), inputs=(Input(name="ids", consumers=("x",), bytes=1),)
            ),
            "input 'ids'",
        ),
        (
            LayerGraph(
                layers=(layer("a"),),
                tied=(
                    TiedParameter(
                        name="w", layers=("a", "x"), param_bytes=4, grad_bytes=4, num_trainable=1
                    ),
                ),
            ),
            "tied parameter 'w'",
        ),
        (LayerGraph(layers=(layer("a", same_as="x"),)), "layer 'a'"),
    ],
)
def test_an_unknown_layer_is_named_with_what_names_it(graph: LayerGraph, message: str):
    with pytest.raises(ProfileError, match=f"{message} names an unknown layer 'x'"):
        check_graph(graph)


def test_more_gradients_than_parameters_are_refused():
    with pytest.raises(ProfileError, match="8 bytes of gradients but only 4 bytes of parameters"):
        check_graph(LayerGraph(layers=(layer("a", grad_bytes=8, param_bytes=4),)))
