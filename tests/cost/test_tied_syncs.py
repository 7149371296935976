"""Tied parameters: what the executor and each framework send for them, once where they are sent once."""

import msgspec
import pytest

from autopart.bounds.rank_groups import Inside, RankGroups
from autopart.cost.tied_syncs import least_tied_prices, tied_price
from autopart.pricing import predict
from autopart.records.cluster import Link
from autopart.records.layer_graph import LayerGraph, TiedParameter
from autopart.records.layouts import Layout
from autopart.records.network import Network
from autopart.records.prediction import Sync as SyncRecord
from autopart.records.problem import Problem
from autopart.records.training import Sync, Training
from tests.support.problems import cluster, layer, problem

TIED = TiedParameter(name="w", layers=("a", "b"), param_bytes=40, grad_bytes=40, num_trainable=10)
SLOW = cluster(2, 2, intra_node=Link(bandwidth=40.0), inter_node=Link(bandwidth=4.0))
SIDE_BY_SIDE = ((0, 1), (2, 3))
"""Each stage on its node, so that the copies of each replica lie on two nodes."""


def tied_problem(sync: Sync, *, zero1: bool = False) -> Problem:
    """Two layers with 80 bytes of gradients each, of which 40 are tied."""
    sizes = {"param_bytes": 80, "grad_bytes": 80, "num_trainable": 20}
    graph = LayerGraph(layers=(layer("a", **sizes), layer("b", **sizes)), tied=(TIED,))
    training = Training(sync=sync, zero1=zero1, bucket_bytes=None if sync == "end" else 1000)
    return problem(graph, cluster=SLOW, training=training)


def syncs_of(one: Problem, *stage_ranks: tuple[int, ...]) -> dict[str, SyncRecord]:
    layout = Layout(schedule="1f1b", stage_ranks=stage_ranks, num_microbatches=2)
    return {sync.what: sync for sync in predict(one, layout, ((0,), (1,)))[1]}


def times(sync: Sync, *, zero1: bool = False) -> dict[str, float]:
    found = syncs_of(tied_problem(sync, zero1=zero1), *SIDE_BY_SIDE)
    return {what: one.time for what, one in found.items()}


@pytest.mark.parametrize("sync", ["end", "overlap"])
@pytest.mark.parametrize("zero1", [False, True])
def test_the_executor_sums_a_tied_parameter_once_over_all_ranks_with_a_copy(
    sync: Sync, zero1: bool
):
    # 40 bytes on two ranks of a node, and 40 bytes in six steps of a ring over four ranks.
    plain = {"stage 0": 1.0, "stage 1": 1.0, "w": 15.0}
    if zero1 and sync == "overlap":
        # Buckets beside backwards are summed whole, and the weights are gathered after that.
        plain = {what: 1.5 * time for what, time in plain.items()}
    assert times(sync, zero1=zero1) == pytest.approx(plain)


@pytest.mark.parametrize("sync", ["megatron", "ddp", "fsdp2", "deepspeed"])
def test_frameworks_sum_copies_in_their_stages_and_then_replica_by_replica(sync: Sync):
    # 80 bytes on two ranks of a node; 40 bytes on two ranks of two nodes, a pair for each replica.
    assert times(sync) == pytest.approx({"stage 0": 2.0, "stage 1": 2.0, "w": 10.0})
    zero1 = times(sync, zero1=True)
    assert zero1["w"] == pytest.approx(5.0 if sync == "fsdp2" else 10.0)


def test_deepspeed_sums_tied_copies_first_and_others_last():
    order = {sync: list(times(sync)) for sync in ("end", "megatron", "ddp", "fsdp2", "deepspeed")}
    assert order.pop("deepspeed") == ["w", "stage 0", "stage 1"]
    assert set(map(tuple, order.values())) == {("stage 0", "stage 1", "w")}


def test_pairs_on_one_node_use_the_link_within_it():
    one = tied_problem("megatron")
    assert syncs_of(one, (0, 2), (1, 3))["w"].time == pytest.approx(1.0)
    assert syncs_of(tied_problem("end"), (0, 2), (1, 3))["w"].time == pytest.approx(15.0)


def test_ranks_with_both_stages_have_it_once_and_sum_it_with_the_first():
    found = syncs_of(tied_problem("end"), (0, 1), (0, 1))
    assert {what: sync.time for what, sync in found.items()} == {"stage 0": 2.0, "stage 1": 1.0}
    # Beside backwards the stages' buckets leave it out: only after both it is complete.
    late = syncs_of(tied_problem("overlap"), (0, 1), (0, 1))
    assert {what: sync.time for what, sync in late.items()} == {
        "stage 0": 1.0, "stage 1": 1.0, "w": 1.0,
    }  # fmt: skip
    # A framework's stages sum their own copies, and each rank adds up its two.
    own = syncs_of(tied_problem("ddp"), (0, 1), (0, 1))
    assert {what: sync.time for what, sync in own.items()} == {"stage 0": 2.0, "stage 1": 2.0}


def test_without_replicas_a_tied_parameter_is_all_reduced_over_its_stages():
    for sync in ("end", "megatron", "deepspeed"):
        found = syncs_of(tied_problem(sync), (0,), (2,))
        assert {what: one.time for what, one in found.items()} == {"w": 10.0}


def test_pairs_have_their_own_share_of_the_rails():
    network = Network(
        rails=2, rail_bandwidth=10.0, ring_bandwidth=1e9, start=0.0, step=0.0, hop=0.0
    )
    training = Training(sync="megatron", bucket_bytes=1000)
    on = msgspec.structs.replace(SLOW, network=network)
    pair = tied_price(on, SIDE_BY_SIDE, training)
    # Each pair has one of the two rails.
    assert pair.seconds(TIED, training) == pytest.approx(4.0)
    assert tied_price(on, [(0, 1), (2,)], training).seconds(TIED, training) > 4.0


@pytest.mark.parametrize("sync", ["end", "megatron", "fsdp2"])
def test_three_copies_are_bounded_by_the_least_price_of_any_two_or_three(sync: Sync):
    training = Training(sync=sync, zero1=True)
    stages = [(0, 1), (2, 3), (4, 5)]
    for network in (None, Network(rails=1, rail_bandwidth=1.0, ring_bandwidth=9.0)):
        on = msgspec.structs.replace(SLOW, num_nodes=3, network=network)
        prices = least_tied_prices(on, stages[0], stages[1:], 3, training)
        least = min(one.seconds(TIED, training) for one in prices)
        for holders in (stages[:2], [stages[0], stages[2]], stages):
            assert least <= tied_price(on, holders, training).seconds(TIED, training) + 1e-12


def test_a_tied_sync_joins_two_places_replica_by_replica_in_frameworks():
    inside = Inside(frozenset(), frozenset(), frozenset([(0, 1)]))
    places = [(0, 1, 2), (3, 4, 5)]
    assert RankGroups(places).sizes(inside) == [6]
    by_replica = RankGroups(places, ties_by_replica=True)
    assert by_replica.sizes(inside) == [2, 2, 2] and by_replica.joined_by(inside) == 2
    assert by_replica.of(inside) == [(0, 3), (1, 4), (2, 5)]
