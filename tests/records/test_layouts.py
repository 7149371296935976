import pytest

from autopart.errors import InfeasibleError
from autopart.records.layouts import (
    Layout,
    has_virtual_stages,
    layouts,
    one_replica,
    own_microbatches,
    replicas_alike,
    shapes,
)
from autopart.records.problem import Demands
from autopart.schedules.actions import dealt, microbatches_per_replica
from tests.support.problems import chain_graph, cluster, layer, problem


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
    with pytest.raises(InfeasibleError, match="the cluster has 1 GPU; ask for at most 1 stage"):
        shapes(two_layers(gpus=1, num_stages=2))


def test_replicas_that_do_not_divide_the_microbatches_are_refused():
    with pytest.raises(
        InfeasibleError, match="3 replicas cannot be made: they must divide the 4 microbatches"
    ):
        shapes(two_layers(num_replicas=3))


def test_more_gpus_than_a_plan_can_use_leave_some_idle():
    assert shapes(two_layers(gpus=9)) == [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]


def test_a_layout_takes_its_ranks_in_their_order():
    found = layouts(two_layers(nodes=2), 2, 2)
    assert {layout.stage_ranks for layout in found} == {((0, 1), (2, 3))}
    assert {layout.schedule for layout in found} == {"gpipe", "1f1b"}
    assert {layout.num_microbatches for layout in found} == {4}


@pytest.mark.parametrize("replicas", range(1, 6))
@pytest.mark.parametrize("num_microbatches", range(1, 12))
def test_a_replica_runs_the_microbatches_that_are_dealt_to_it(replicas: int, num_microbatches: int):
    ranks = range(replicas)
    counts = [microbatches_per_replica(num_microbatches, replicas, replica) for replica in ranks]
    assert counts == [len(dealt(ranks, rank, num_microbatches)) for rank in ranks]
    layout = Layout(schedule="1f1b", stage_ranks=(tuple(ranks),), num_microbatches=num_microbatches)
    assert own_microbatches(layout, 0) == max(counts)


def six_layers(gpus: int, num_microbatches: int = 8, **demands: object):
    graph = chain_graph(*(layer(name) for name in "abcdef"))
    return problem(
        graph,
        num_microbatches,
        cluster=cluster(1, gpus),
        demands=Demands(**demands),  # pyright: ignore
    )


def test_two_pipelines_over_the_same_ranks_count_as_ranks_with_two_stages():
    asked = six_layers(4, schedules=("chimera",))
    assert shapes(asked) == [(1, 2), (1, 4), (2, 2)]
    assert shapes(six_layers(4, schedules=("chimera",), num_stages=4)) == [(2, 2)]
    assert shapes(six_layers(4, schedules=("chimera",), num_replicas=4)) == [(1, 4)]


def test_each_pair_of_pipelines_has_ranks_of_its_own():
    asked = six_layers(8, schedules=("gems",))
    (one,) = layouts(asked, 2, 2)
    assert one.stage_ranks == ((0, 3), (1, 2), (2, 1), (3, 0))
    (two,) = layouts(asked, 2, 4)
    assert two.stage_ranks == ((0, 6, 1, 7), (2, 4, 3, 5), (4, 2, 5, 3), (6, 0, 7, 1))
    assert one_replica(two).stage_ranks == one.stage_ranks
    assert one_replica(two).num_microbatches == 4
    assert replicas_alike(two) and has_virtual_stages(two)


@pytest.mark.parametrize(
    ("gpus", "demands", "tried"),
    [
        (3, {"num_stages": 3}, "try --stages 2 or 4"),
        (4, {"num_replicas": 1}, "try --replicas 2"),
        (4, {"num_stages": 5, "num_replicas": 3}, "try --stages 4 or 6, --replicas 2 or 4"),
        (1, {}, "try 2 GPUs"),
        (4, {"num_stages": 6}, "k stages x r replicas take k r / 2 of 4 GPUs"),
    ],
)
def test_odd_numbers_are_refused_for_two_pipelines_over_the_same_ranks(
    gpus: int, demands: dict[str, object], tried: str
):
    with pytest.raises(InfeasibleError, match=f"chimera runs two pipelines over .*{tried}"):
        shapes(six_layers(gpus, schedules=("chimera",), **demands))
    with pytest.raises(InfeasibleError, match="6 or 8 microbatches"):
        shapes(six_layers(4, 7, schedules=("chimera",)))
