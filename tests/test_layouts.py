import pytest

from autopart.errors import InfeasibleError
from autopart.layouts import layouts, shapes
from autopart.problem import Demands
from tests.problems import chain_graph, cluster, layer, problem


def two_layers(num_microbatches: int = 4, gpus: int = 4, nodes: int = 1, **demands: object):
    graph = chain_graph(layer("a"), layer("b"))
    machine = cluster(nodes, gpus // nodes)
    return problem(graph, num_microbatches, cluster=machine, demands=Demands(**demands))  # pyright: ignore


def test_shapes_are_all_stages_and_replicas_that_divide_the_microbatches():
    assert shapes(two_layers()) == [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)]
    assert shapes(two_layers(num_stages=2)) == [(2, 1), (2, 2)]
    assert shapes(two_layers(num_replicas=4)) == [(1, 4)]


def test_more_stages_than_layers_are_refused_with_the_most_that_would_do():
    with pytest.raises(InfeasibleError, match="3 stages cannot be made: the model has 2 layers"):
        shapes(two_layers(num_stages=3))
    with pytest.raises(InfeasibleError, match="there are 1 GPUs; ask for at most 1 stages"):
        shapes(two_layers(gpus=1, num_stages=2))


def test_replicas_that_do_not_divide_the_microbatches_are_refused():
    with pytest.raises(InfeasibleError, match="3 replicas: they must divide the 4 microbatches"):
        shapes(two_layers(num_replicas=3))


def test_gpus_that_no_plan_could_use_are_refused_with_how_many_could_be():
    with pytest.raises(InfeasibleError, match=r"9 GPUs cannot be used.* employ at most 8"):
        shapes(two_layers(gpus=9))


def test_a_layout_keeps_replicas_or_pipelines_side_by_side():
    found = layouts(two_layers(nodes=2), 2, 2)
    assert {layout.stage_ranks for layout in found} == {((0, 1), (2, 3)), ((0, 2), (1, 3))}
    assert {layout.schedule for layout in found} == {"gpipe", "1f1b"}
    assert {layout.num_microbatches for layout in found} == {4}
