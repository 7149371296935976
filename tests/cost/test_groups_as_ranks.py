"""Rank groups as ranks: prices against the single GPUs that they stand for."""

import random
from typing import Any

import msgspec
import pytest

from autopart.cost.cuts import stage_totals
from autopart.cost.groups_as_ranks import (
    cluster_of_groups,
    collective_times,
    layers_of_group,
    problem_of_groups,
)
from autopart.cost.on_ranks import on_replicas
from autopart.cost.stage_times import cut_links
from autopart.cost.syncs import all_reduce_price, call_price, group_call_price, sync_price
from autopart.records.cluster import Cluster, Link, host_share
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.layer_graph import Recompute
from autopart.records.measured_collectives import MeasuredCollective, MeasuredCollectives
from autopart.records.network import Network
from autopart.records.rank_group import Group
from autopart.records.training import Sync, Training
from tests.support.problems import chain_graph, cluster, layer, problem

SHAPES = [(gpus, t) for gpus in (2, 4, 6, 8) for t in (2, 3, 4, 8) if gpus % t == 0]


def drawn_cluster(rng: random.Random, gpus: int, *, network: bool) -> Cluster:
    """Nodes with so many GPUs and slow links between them."""
    return cluster(
        3,
        gpus,
        intra_node=Link(bandwidth=300e9, latency=2e-6, all_reduce_factor=1.25),
        inter_node=Link(bandwidth=rng.uniform(1e9, 60e9), latency=9e-6),
        host_memory_bytes=rng.choice([None, 1000]),
        network=Network(
            rails=rng.choice([1, 2, gpus // 2, gpus, 2 * gpus]),
            rail_bandwidth=48e9,
            ring_bandwidth=370e9,
            switch_bandwidth=rng.choice([None, 480e9]),
            switch_ranks=2,
            off_rail=0.5,
        )
        if network
        else None,
    )


def alone(ranks: tuple[int, ...], degree: int, place: int) -> tuple[int, ...]:
    """The GPUs at one place of each group."""
    return tuple(rank * degree + place for rank in ranks)


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize(("gpus", "degree"), SHAPES)
def test_groups_sync_and_send_as_the_gpus_at_each_of_their_places(
    gpus: int, degree: int, *, network: bool
):
    """Each place has its own share of the rails, so a price with groups as ranks is that of every place."""
    rng = random.Random(f"{gpus} {degree} {network}")
    for _ in range(40):
        real = drawn_cluster(rng, gpus, network=network)
        groups = cluster_of_groups(real, degree)
        room = 3 * gpus // degree
        taken = rng.sample(range(room), rng.randint(2, room))
        half = len(taken) // 2
        here, there = tuple(taken[:half]), tuple(taken[half:])
        training, size = Training(zero1=rng.random() < 0.5), rng.uniform(1, 1e9)
        for place in range(degree):
            own = alone(there, degree, place)
            assert sync_price(groups, there, training).seconds(size) == pytest.approx(
                sync_price(real, own, training).seconds(size)
            )
            assert all_reduce_price(groups, there).seconds(size) == pytest.approx(
                all_reduce_price(real, own).seconds(size)
            )
        (link,) = cut_links(groups, (here, there))
        each = [
            cut_links(real, (alone(here, degree, place), alone(there, degree, place)))[0]
            for place in range(degree)
        ]
        slowest = min((one for one in each if one), key=lambda one: one.bandwidth)
        assert link is not None
        assert (link.bandwidth, link.latency) == pytest.approx((slowest.bandwidth, slowest.latency))


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize(("gpus", "nodes"), [(2, 4), (2, 2), (4, 3), (8, 1)])
def test_groups_of_whole_nodes_sync_and_send_as_the_gpus_at_each_of_their_places(
    gpus: int, nodes: int, *, network: bool
):
    rng = random.Random(f"{gpus} {nodes} {network}")
    for _ in range(20):
        real = msgspec.structs.replace(
            drawn_cluster(rng, gpus, network=network), num_nodes=5 * nodes
        )
        degree = gpus * nodes
        groups = cluster_of_groups(real, degree)
        assert (groups.num_nodes, groups.gpus_per_node) == (5, 1)
        assert host_share(groups) == host_share(real)
        taken, size = rng.sample(range(5), 4), rng.uniform(1, 1e9)
        here, there = tuple(taken[:2]), tuple(taken[2:])
        training = Training(zero1=rng.random() < 0.5)
        (link,) = cut_links(groups, (here, there))
        for place in rng.sample(range(degree), min(3, degree)):
            own, other = (alone(ranks, degree, place) for ranks in (here, there))
            assert sync_price(groups, here, training).seconds(size) == pytest.approx(
                sync_price(real, own, training).seconds(size)
            )
            (each,) = cut_links(real, (own, other))
            assert link is not None and each is not None
            assert (link.bandwidth, link.latency) == pytest.approx((each.bandwidth, each.latency))


TWO_NODES = cluster(
    2,
    4,
    intra_node=Link(bandwidth=8.0),
    inter_node=Link(bandwidth=1.0, latency=0.5),
    network=Network(
        rails=2,
        rail_bandwidth=10.0,
        ring_bandwidth=100.0,
        start=1.0,
        step=0.01,
        hop=0.25,
        peer=0.125,
        all_to_all_efficiency=0.5,
    ),
)
"""Two nodes of four GPUs: each GPU has 5 bytes per second of the rails, and a node 20."""


@pytest.mark.parametrize(
    ("group", "among", "kind", "seconds"),
    [
        # A ring over four GPUs of each node: 7/8 of the bytes at 20 per second; six steps and one hop.
        ({"context": 8}, "context", "all_gather", 1 + 6 * 0.01 + 0.25 + 7 / 8 * 80 / 20),
        # Tensor degree 4 leaves one GPU per node: half of the bytes at its own 5 per second.
        ({"tensor": 4, "context": 2}, "context", "all_gather", 1 + 0.25 + 1 / 2 * 80 / 5),
        # Two GPUs per node, with the rails of two: 10 bytes per second.
        ({"tensor": 2, "context": 4}, "context", "reduce_scatter", 1 + 0.27 + 3 / 4 * 80 / 10),
        # Each GPU sends 4 of 8 parts to the other node, over half of its 5 per second.
        ({"expert": 8}, "expert", "all_to_all", 1 + 4 * 0.125 + 0.25 + 4 / 8 * 80 / 2.5),
        # Context ranks share a node, and the two GPUs that share state are on two nodes.
        ({"context": 4, "data": 2}, "data", "all_gather", 1 + 0.25 + 1 / 2 * 80 / 5),
        ({"context": 4, "data": 2}, "context", "all_gather", 1 + 3 * 0.01 + 3 / 4 * 80 / 100),
    ],
)
def test_a_collective_of_a_group_on_two_nodes_is_priced_by_their_rails(
    group: dict[str, int], among: Any, kind: Any, seconds: float
):
    shared: dict[str, Any] = {"shard": "zero3", "reduce": "step"} if "data" in group else {}
    one = Collective(kind=kind, bytes=80, phase="step", among=among)
    listed = [LayerCollectives(layer="a", collectives=(one,))]
    times = collective_times(listed, TWO_NODES, Group(**group, **shared))
    assert times["a"].step == pytest.approx(seconds)


def test_without_a_network_a_group_on_two_nodes_has_a_ring_over_the_link_between_them():
    one = Collective(kind="all_gather", bytes=80, phase="step", among="context")
    on = msgspec.structs.replace(TWO_NODES, network=None)
    listed = [LayerCollectives(layer="a", collectives=(one,))]
    times = collective_times(listed, on, Group(context=8))
    assert times["a"].step == pytest.approx(7 * (0.5 + 80 / 8 / 1.0))


def test_rails_that_groups_share_in_part_count_as_rails_of_their_own():
    # GPUs 0 to 7 lie at rails 0 0 0 1 1 1 2 2: groups of two share rail 0 and rail 1 in part.
    real = cluster(2, 8, network=Network(rails=3, rail_bandwidth=8e9, ring_bandwidth=1e11))
    network = cluster_of_groups(real, 2).network
    assert network is not None
    assert (network.rails, network.rail_bandwidth) == (4, 3 * 8e9 / 2 / 4)


def test_a_group_has_the_memory_of_one_gpu_and_its_share_of_the_host():
    real = cluster(2, 8, host_memory_bytes=1001, memory_bytes=77)
    groups = cluster_of_groups(real, 4)
    assert (groups.num_nodes, groups.gpus_per_node, groups.memory_bytes) == (2, 2, 77)
    assert host_share(groups) == host_share(real) == 125
    assert cluster_of_groups(real, 1) is real


def variant(*collectives: Collective, degree: int = 2) -> GroupVariant:
    one = layer(
        "a",
        update_time=4.0,
        recompute=Recompute(extra_time=1.0, stash_bytes=0),
        selective=Recompute(extra_time=0.5, stash_bytes=0),
    )
    return GroupVariant(
        group=Group(tensor=degree, sequence_parallel=False),
        graph=chain_graph(one, layer("b")),
        collectives=(LayerCollectives(layer="a", collectives=collectives),),
    )


SECOND = Link(bandwidth=1.0)
"""A link over which an all-reduce of n bytes takes n seconds on two ranks."""


def test_seconds_of_collectives_are_added_to_their_phase():
    graph = layers_of_group(
        variant(
            Collective(kind="all_reduce", bytes=8, phase="forward", recomputed=True),
            Collective(kind="all_gather", bytes=4, phase="forward"),
            Collective(kind="reduce_scatter", bytes=6, phase="input_grad"),
            Collective(kind="all_reduce", bytes=5, phase="weight_grad"),
            Collective(kind="all_reduce", bytes=7, phase="step"),
        ),
        cluster(intra_node=SECOND),
        Training(),
    )
    first, second = graph.layers
    assert first.forward_time == 1 + 8 + 2
    assert first.recompute == Recompute(extra_time=1 + 8, stash_bytes=0)
    assert first.selective == Recompute(extra_time=0.5 + 8, stash_bytes=0)
    assert (first.input_grad_time, first.weight_grad_time) == (1 + 3, 1 + 5)
    assert (first.update_time, first.unshared_update_time, first.split_time) == (4 + 7, 7, 0)
    assert second == layer("b")


@pytest.mark.parametrize(
    ("sync", "size", "exposed"),
    [
        ("megatron", 0.25, 0.0),
        ("megatron", 1.0, 0.0),
        ("megatron", 3.0, 2.0),
        *((other, 0.25, 0.25) for other in ("end", "overlap", "ddp", "fsdp2", "deepspeed")),
    ],
)
def test_megatron_hides_a_collective_beneath_w_in_a_whole_backward(
    sync: Sync, size: float, exposed: float
):
    beneath = Collective(kind="all_reduce", bytes=4, phase="input_grad", beneath="weight_grad")
    slow = cluster(intra_node=Link(bandwidth=4 / size))
    first = layers_of_group(variant(beneath), slow, Training(sync=sync)).layers[0]
    whole = first.input_grad_time + first.weight_grad_time
    assert whole == pytest.approx(2 + exposed)
    # The split backward's I has the whole collective, and W is as it was.
    assert first.input_grad_time + first.split_time == pytest.approx(1 + size)
    assert first.weight_grad_time == 1


def test_compute_slows_down_layers_and_not_their_collectives():
    there = Collective(kind="all_reduce", bytes=8, phase="forward")
    beneath = Collective(kind="all_reduce", bytes=5, phase="input_grad", beneath="weight_grad")
    slow = cluster(intra_node=SECOND, compute_slowdown=2.0)
    asked = problem(chain_graph(layer("a"), layer("b")), cluster=slow)
    asked = msgspec.structs.replace(asked, training=Training(sync="megatron"))
    groups = problem_of_groups(asked, variant(there, beneath))
    (totals,) = stage_totals(groups.graph, ((0, 1),))
    placed = on_replicas(totals, groups, 1, 0.5)
    assert placed.forward_time == 2 * 2 + 8
    # W takes 2 seconds, and hides as many of the 5.
    assert placed.backward_time == pytest.approx(2 * 4 + 3)


def test_replicas_do_not_share_the_sums_of_a_tensor_group():
    once = Collective(kind="all_reduce", bytes=7, phase="step")
    asked = problem(chain_graph(layer("a"), layer("b")), training=Training(zero1=True))
    on = cluster(intra_node=SECOND)
    groups = problem_of_groups(msgspec.structs.replace(asked, cluster=on), variant(once))
    (totals,) = stage_totals(groups.graph, ((0, 1),))
    assert [on_replicas(totals, groups, r, 1.0).update_time for r in (1, 2, 4)] == [11, 9, 8]


def test_gathers_and_scatters_take_half_of_an_all_reduce_over_a_link():
    on = cluster(intra_node=SECOND)
    times = [
        call_price(on, range(4), kind).seconds(8.0)
        for kind in ("all_reduce", "all_gather", "reduce_scatter")
    ]
    assert times == [12, 6, 6]


@pytest.mark.parametrize(
    ("among", "gpus"),
    [("tensor", (0, 1)), ("context", (0, 2, 4)), ("data", (0, 6)), (msgspec.UNSET, (0, 1))],
)
def test_a_collective_joins_the_gpus_of_its_own_degree(among: Any, gpus: tuple[int, ...]):
    """Groups of 2 x 3 x 2 GPUs, on a node of 12 whose rails differ: the GPUs that are joined decide the price."""
    real = drawn_cluster(random.Random(3), 12, network=True)
    group = Group(tensor=2, context=3, data=2, shard="zero2", reduce="step")
    one = Collective(kind="all_gather", bytes=10**9, phase="forward", among=among)
    times = collective_times([LayerCollectives(layer="a", collectives=(one,))], real, group)
    own = times["a"]
    assert own.forward + own.gather_forward == call_price(real, gpus, "all_gather").seconds(1e9)


def test_measured_collectives_price_a_group_and_leave_syncs_as_they_are():
    """Among 4 ranks a ring has 3 steps in place of 1, and each rank sends 3/4 of its bytes in place of 1/2."""
    line = MeasuredCollective(latency=0.5, bandwidth=10.0)
    measured = MeasuredCollectives(
        ranks=2,
        all_reduce=MeasuredCollective(latency=1.0, bandwidth=20.0),
        all_gather=line,
        reduce_scatter=MeasuredCollective(latency=0.25, bandwidth=5.0),
        all_to_all=MeasuredCollective(bandwidth=40.0),
    )
    ring = Link(bandwidth=100.0, latency=0.1)
    link = msgspec.structs.replace(ring, collectives=measured)
    plain, real = (cluster(1, 4, intra_node=own, inter_node=own) for own in (ring, link))
    kinds = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    two, four = (
        [group_call_price(real, range(n), kind).seconds(80.0) for kind in kinds] for n in (2, 4)
    )
    assert two == pytest.approx([1 + 4, 0.5 + 8, 0.25 + 16, 2])
    assert four == pytest.approx([3 + 6, 1.5 + 12, 0.75 + 24, 3])
    for zero1 in (False, True):
        training = Training(zero1=zero1)
        assert sync_price(real, (0, 1), training).seconds(80.0) == pytest.approx(
            sync_price(plain, (0, 1), training).seconds(80.0)
        )
