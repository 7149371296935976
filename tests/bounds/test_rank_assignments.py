"""Every assignment of ranks to nodes: no assignment is faster than the leaves of the tree."""

import random

import msgspec
import pytest

from autopart.bounds.of_layout import layout_bounds
from autopart.bounds.pseudo_clusters import links_are_ordered
from autopart.bounds.rank_assignments import RankAssignments, fastest_assigned
from autopart.cost.cuts import all_cuts
from autopart.pricing import fits, price
from autopart.records.cluster import Link
from autopart.records.layouts import layouts, layouts_of, shapes
from autopart.records.network import Network
from autopart.records.problem import Demands, Problem
from autopart.records.training import Training
from tests.support.oracle import on_every_rank, partitions
from tests.support.problems import chain_graph, cluster, layer, problem, random_graph
from tests.support.seeds import seeds
from tests.support.witness.draws import draw_network


def several_nodes(rng: random.Random) -> Problem:
    """A small problem on nodes with slow links between them."""
    graph = random_graph(rng, rng.randint(2, 4), branching=rng.random() < 0.3)
    nodes, per_node = rng.choice([(2, 2), (2, 3), (3, 2), (4, 1)])
    machine = cluster(
        nodes,
        per_node,
        intra_node=Link(bandwidth=100.0, latency=0.0),
        inter_node=Link(bandwidth=rng.choice([2.0, 10.0]), latency=rng.choice([0.0, 0.3])),
        sends_overlap=rng.random() < 0.5,
    )
    return problem(graph, rng.choice([2, 4]), cluster=machine)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("seed", seeds(12, 120))
def test_some_leaf_is_as_fast_as_any_assignment_for_every_partition(seed: int, uneven: bool):
    rng = random.Random(seed)
    asked = several_nodes(rng)
    shape = rng.choice(shapes(asked))
    counts = (shape[1],) * shape[0]
    if uneven:
        counts = tuple(rng.randint(1, 2) for _ in range(min(3, len(asked.graph.layers))))
        if sum(counts) > asked.cluster.num_nodes * asked.cluster.gpus_per_node:
            return
    layout = rng.choice(layouts_of(asked, counts))
    tree = RankAssignments(asked, layout)
    leaves = tree.open_layouts(layout_bounds, all_cuts(asked.graph), float("inf"))
    assert leaves
    relaxed = fastest_assigned(asked, layout)
    for partition in partitions(asked, len(layout.stage_ranks)):
        steps = [price(asked, leaf, partition).prediction.step_time for leaf in leaves]
        every = [
            price(asked, one, partition).prediction.step_time
            for one in on_every_rank(asked, layout)
        ]
        assert min(steps) == pytest.approx(min(every), rel=1e-9)
        assert price(*relaxed, partition).prediction.step_time <= min(every) * (1 + 1e-9)


@pytest.mark.parametrize("seed", seeds(6, 40))
def test_nothing_below_a_value_is_left_out_where_links_between_nodes_are_the_faster_ones(seed: int):
    rng = random.Random(seed)
    asked = several_nodes(rng)
    machine = msgspec.structs.replace(
        asked.cluster, intra_node=Link(bandwidth=5.0), inter_node=Link(bandwidth=20.0, latency=0.1)
    )
    asked = msgspec.structs.replace(asked, cluster=machine)
    assert not links_are_ordered(machine)
    layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    relaxed = fastest_assigned(asked, layout)
    for partition in partitions(asked, len(layout.stage_ranks)):
        least = price(*relaxed, partition).prediction.step_time
        for one in on_every_rank(asked, layout):
            decision = price(asked, one, partition)
            assert fits(asked, decision)
            assert least <= decision.prediction.step_time * (1 + 1e-9)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("seed", seeds(20, 300))
def test_with_any_network_no_assignment_is_faster_than_the_groups_apart(seed: int, uneven: bool):
    """A leaf that stands for all others is the fastest of all, and bounds leave none out."""
    rng = random.Random(seed)
    asked = several_nodes(rng)
    machine = asked.cluster
    network = draw_network(rng, machine.num_nodes, machine.gpus_per_node)
    # The oracle takes ranks of a node in their order, whatever their rails.
    network = msgspec.structs.replace(network, off_rail=1.0)
    asked = msgspec.structs.replace(
        asked,
        cluster=msgspec.structs.replace(machine, network=network),
        training=Training(zero1=rng.random() < 0.5),
    )
    counts = [(replicas,) * stages for stages, replicas in shapes(asked)]
    if uneven:
        most = min(2, len(asked.graph.layers))
        counts = [
            own for own in ((1, 2), (2, 1), (3, 1), (1, 3))[: 4 * (most > 1)] if sum(own) <= 4
        ]
    layout = rng.choice(layouts_of(asked, rng.choice(counts)))
    tree, cuts = RankAssignments(asked, layout), all_cuts(asked.graph)
    relaxed, leaf = tree.apart(tree.root), tree.best_leaf(tree.root)
    bounds = layout_bounds(*relaxed, cuts)
    for partition in partitions(asked, len(layout.stage_ranks)):
        every = min(
            price(asked, one, partition).prediction.step_time
            for one in on_every_rank(asked, layout)
        )
        assert price(*relaxed, partition).prediction.step_time <= every * (1 + 1e-9)
        assert next(bounds.paths_below(every * (1 + 1e-9)), None) is not None
        if leaf is not None:
            own = price(asked, leaf, partition).prediction.step_time
            assert own == pytest.approx(every, rel=1e-9)


def test_a_leaf_stands_for_others_only_where_no_spread_has_a_cheaper_sync():
    """Replicas side by side make cuts cheap, and two per node make syncs cheap: each is another leaf."""
    network = Network(rails=4, rail_bandwidth=1.0, ring_bandwidth=100.0, step=0.0, hop=0.0)
    machine = cluster(4, 2, network=network)
    asked = problem(chain_graph(layer("a", grad_bytes=40), layer("b")), 8, cluster=machine)
    # All GPUs: any assignment is the same.
    whole = RankAssignments(asked, layouts(asked, 1, 8)[0])
    assert whole.best_leaf(whole.root) is not None
    # Two stages of four replicas: one of each on a node, or two of one.
    halves = RankAssignments(asked, layouts(asked, 2, 4)[0])
    assert halves.root.cuts and not halves.root.syncs
    assert halves.on_nodes(halves.root) is not None
    assert halves.best_leaf(halves.root) is None


def test_one_node_has_one_assignment():
    asked = problem(chain_graph(layer("a"), layer("b")), demands=Demands())
    for layout in layouts(asked, 2, 2):
        tree = RankAssignments(asked, layout)
        assert tree.open_layouts(layout_bounds, all_cuts(asked.graph), float("inf")) == [layout]


def test_stages_change_nodes_at_the_cut_that_fits():
    # Three stages on two nodes of two: either cut may lie between nodes, and nothing else helps.
    asked = problem(chain_graph(layer("a"), layer("b"), layer("c")), cluster=cluster(2, 2))
    tree = RankAssignments(asked, layouts(asked, 3, 1)[0])
    leaves = tree.open_layouts(layout_bounds, all_cuts(asked.graph), float("inf"))
    assert leaves is not None
    assert {leaf.stage_ranks for leaf in leaves} == {((0,), (2,), (3,)), ((0,), (1,), (2,))}
