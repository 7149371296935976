"""Matrices that are kept for other nodes equal those of the layout at hand."""

import random

import msgspec
import numpy as np
import pytest

from autopart.bounds import any_nodes
from autopart.bounds.classic_schedules import stage_bounds
from autopart.bounds.rank_assignments import RankAssignments
from autopart.cost.cuts import Cuts, all_cuts
from autopart.records.cluster import Link
from autopart.records.layouts import Layout, layouts, shapes
from autopart.records.problem import Problem
from autopart.records.training import Training
from tests.support.oracle import on_every_rank
from tests.support.problems import cluster, problem, random_graph
from tests.support.seeds import seeds
from tests.support.witness.draws import draw_network


def several_nodes(rng: random.Random) -> Problem:
    """A random problem on two nodes, often with a network record and with syncs beside compute."""
    graph = random_graph(rng, rng.randint(2, 4), branching=rng.random() < 0.3)
    inside, across = Link(bandwidth=100.0), Link(bandwidth=rng.choice([2.0, 10.0]), latency=0.3)
    overlap = rng.random() < 0.5
    machine = cluster(2, 3, intra_node=inside, inter_node=across, sends_overlap=overlap)
    if rng.random() < 0.6:
        network = msgspec.structs.replace(draw_network(rng, 2, 3), off_rail=1.0)
        machine = msgspec.structs.replace(machine, network=network)
    training = Training(
        zero1=rng.random() < 0.5,
        sync=rng.choice(["end", "overlap", "fsdp2"]),  # pyright: ignore
        bucket_bytes=7,
    )
    return msgspec.structs.replace(problem(graph, 4, cluster=machine), training=training)


def computed_anew(asked: Problem, layout: Layout, cuts: Cuts) -> list[np.ndarray]:
    any_nodes.of_counts.cache_clear()
    return [np.array(own) for own in stage_bounds(asked, layout, cuts)]


@pytest.mark.parametrize("seed", seeds(30, 400))
def test_bounds_do_not_depend_on_what_was_asked_before(seed: int):
    rng = random.Random(seed)
    asked = several_nodes(rng)
    cuts = all_cuts(asked.graph)
    layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    tree = RankAssignments(asked, layout)
    # The same model with another slowdown or other links follows in the same process.
    machine, network = several_nodes(rng).cluster, asked.cluster.network
    if network is not None:
        network = msgspec.structs.replace(network, slowdown=network.slowdown + 0.5)
        machine = msgspec.structs.replace(asked.cluster, network=network)
    other = msgspec.structs.replace(asked, cluster=machine)
    places = [(asked, one) for one in on_every_rank(asked, layout)]
    places += [
        (own.problem, own.layout) for own in map(tree.apart, (tree.root, *tree.smaller(tree.root)))
    ]
    places += [(other, one) for one in on_every_rank(asked, layout)]
    rng.shuffle(places)
    anew = [computed_anew(*place, cuts) for place in places]
    any_nodes.of_counts.cache_clear()
    for place, own in zip(places, anew, strict=True):
        for kept, made in zip(stage_bounds(*place, cuts), own, strict=True):
            assert np.array_equal(kept, made)


def test_an_assignment_with_the_same_links_has_the_same_matrix_and_it_is_read_only():
    rng = random.Random(0)
    asked = several_nodes(rng)
    layout = next(one for one in layouts(asked, 2, 1) if one.schedule == "1f1b")
    swapped = msgspec.structs.replace(layout, stage_ranks=((1,), (0,)))
    cuts = all_cuts(asked.graph)
    first, again = (stage_bounds(asked, one, cuts) for one in (layout, swapped))
    assert all(a is b for a, b in zip(first, again, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        first[0][0, 0] = 1.0


def test_matrices_that_are_too_many_are_dropped(monkeypatch: pytest.MonkeyPatch):
    asked = several_nodes(random.Random(0))
    cuts = all_cuts(asked.graph)
    layout = layouts(asked, 2, 1)[0]
    before = computed_anew(asked, layout, cuts)
    monkeypatch.setattr(any_nodes, "KEPT_ENTRIES", 2 * cuts.nested.size)
    after = computed_anew(asked, layout, cuts)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert any_nodes.on_any_nodes(asked, layout, cuts).entries <= 2 * cuts.nested.size
