"""Ranks on the rails of their sends."""

import itertools
import random

import msgspec
import pytest

from autopart.cost.rails import on_own_rails
from autopart.cost.stage_times import cut_links
from autopart.records.cluster import Cluster, Link
from autopart.records.known_clusters import find_preset, preset_cluster
from tests.support.seeds import seeds


def machine(nodes: int, per_node: int = 8, rails: int = 8, off_rail: float = 0.5) -> Cluster:
    cluster = preset_cluster(find_preset("dgx-h100"), nodes)
    assert cluster.network is not None
    network = msgspec.structs.replace(cluster.network, rails=rails, off_rail=off_rail)
    return msgspec.structs.replace(cluster, gpus_per_node=per_node, network=network)


def bandwidths(cluster: Cluster, stage_ranks: tuple[tuple[int, ...], ...]) -> list[float]:
    links = cut_links(cluster, stage_ranks)
    return [link.bandwidth for link in links if link is not None]


def test_two_stages_per_node_change_places_on_every_second_node() -> None:
    """Stages of four replicas: the cut between two nodes joins the second half of one node with
    the first half of the next."""
    cluster = machine(2)
    stages = tuple(tuple(range(at, at + 4)) for at in (0, 4, 8, 12))
    own = on_own_rails(cluster, stages)
    assert own[1:3] == ((4, 5, 6, 7), (12, 13, 14, 15)) or own[2][0] % 8 == own[1][0] % 8
    inside, across = cluster.intra_node.bandwidth, cluster.inter_node.bandwidth
    assert bandwidths(cluster, stages) == [inside, 0.5 * across, inside]
    assert bandwidths(cluster, own) == [inside, across, inside]


def test_ranks_stay_where_sends_keep_to_their_rail_or_off_rail_is_no_slower() -> None:
    stages = tuple(tuple(range(at, at + 8)) for at in (0, 8, 16))
    assert on_own_rails(machine(3), stages) == stages
    crossed = ((0, 1), (9, 8))
    assert on_own_rails(machine(2, off_rail=1.0), crossed) == crossed
    assert on_own_rails(machine(2), crossed) != crossed


def test_gpus_that_share_a_rail_take_sends_of_each_other() -> None:
    cluster = machine(2, rails=2)
    assert on_own_rails(cluster, ((0, 3), (8, 9))) == ((0, 3), (8, 9))


@pytest.mark.parametrize("seed", seeds(60, 2000, slow=200))
def test_every_rank_stays_on_its_node_and_the_best_of_all_places_is_no_better(seed: int) -> None:
    rng = random.Random(seed)
    per_node, nodes = rng.choice([(2, 2), (2, 3), (3, 2)])
    cluster = machine(nodes, per_node, rails=rng.choice([per_node, 2 * per_node]))
    ranks = list(range(nodes * per_node))
    rng.shuffle(ranks)
    replicas = rng.choice([1, 2])
    stages = tuple(tuple(ranks[at : at + replicas]) for at in range(0, len(ranks) - 1, replicas))
    own = on_own_rails(cluster, stages)
    moved = [rank for ranks in own for rank in ranks]
    assert len(set(moved)) == len(moved)
    assert [r // per_node for r in moved] == [r // per_node for ranks in stages for r in ranks]
    # All ways to permute GPUs on their nodes: how many cuts keep to their rail at most?
    of_nodes = itertools.product(itertools.permutations(range(per_node)), repeat=nodes)
    most = max(
        _slow(cluster, tuple(
            tuple(r // per_node * per_node + gpus[r // per_node][r % per_node] for r in ranks)
            for ranks in stages
        ))
        for gpus in of_nodes
    )  # fmt: skip
    slow = _slow(cluster, own)
    assert slow >= _slow(cluster, stages)
    if most == 0:
        assert slow == 0


def _slow(cluster: Cluster, stages: tuple[tuple[int, ...], ...]) -> int:
    """Minus the number of cuts off their rail."""
    off: Link = cluster.inter_node
    return -sum(rate < off.bandwidth for rate in bandwidths(cluster, stages))
