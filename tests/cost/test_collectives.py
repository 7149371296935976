"""Collectives by the shape of their group: cited measurements, laws, and the least price of any placement."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost.collectives import (
    CollectiveName,
    Fabric,
    GroupShape,
    fabric_of,
    least_price,
    price_of,
    shape_of,
)
from autopart.records.known_clusters import PRESETS, find_preset, preset_cluster
from autopart.records.network import Network

GiB, MiB = 1 << 30, 1 << 20
COLLECTIVES: tuple[CollectiveName, ...] = (
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "sharded_sync",
)  # fmt: skip


def seconds(preset: str, collective: CollectiveName, ranks: int, nodes: int, size: float) -> float:
    fabric = fabric_of(preset_cluster(find_preset(preset), nodes))
    assert fabric is not None
    return price_of(fabric, collective, GroupShape(ranks, nodes, ranks // nodes)).seconds(size)


CITED: tuple[tuple[str, CollectiveName, int, int, int, float], ...] = (
    # stas00/ml-engineering network/README.md, one A100 node.
    ("dgx-a100", "all_reduce", 8, 1, 1 * GiB, 8203.9e-6),
    # nccl issue 812, two DGX A100.
    ("dgx-a100", "all_reduce", 16, 2, 8 * GiB, 83886e-6),
    # OCI tutorial, two H100 nodes.
    ("dgx-h100", "all_reduce", 16, 2, 1 * GiB, 4511.2e-6),
    ("dgx-h100", "all_reduce", 16, 2, 16 * GiB, 69338e-6),
    # coreweave/nccl-tests README, eight H100 nodes.
    ("dgx-h100", "all_reduce", 64, 8, 8 * GiB, 43980e-6),
    # crazyguitar/aws-gpu-communication-benchmark, two and four p5.
    ("p5", "all_reduce", 16, 2, 1 * GiB, 4626.6e-6),
    ("p5", "all_reduce", 16, 2, 8 * GiB, 33715e-6),
    ("p5", "all_reduce", 32, 4, 8 * GiB, 46621e-6),
    ("p5", "all_reduce", 32, 4, 2 * GiB, 11971e-6),
    # run:ai, two H100 nodes.
    ("dgx-h100", "all_reduce", 16, 2, 4 * GiB, 17054e-6),
    # A public vendor test, GB300 NVL72 and two B300 nodes.
    ("b300", "all_reduce", 16, 2, 8 * GiB, 21012e-6),
    ("gb200-nvl72", "all_reduce", 72, 1, 8 * GiB, 20299e-6),
)
"""Preset, collective, ranks, nodes, bytes, and the seconds that the source measured."""


@pytest.mark.parametrize("cited", CITED, ids=lambda cited: f"{cited[0]}-{cited[2]}-{cited[4]}")
def test_a_cited_measurement_is_met(cited: tuple[str, CollectiveName, int, int, int, float]):
    preset, collective, ranks, nodes, size, measured = cited
    assert seconds(preset, collective, ranks, nodes, size) == pytest.approx(measured, rel=0.13)


def test_the_median_error_of_the_cited_measurements_is_small():
    errors = [
        abs(seconds(preset, collective, ranks, nodes, size) / measured - 1)
        for preset, collective, ranks, nodes, size, measured in CITED
    ]
    assert np.median(errors) < 0.05


@st.composite
def fabrics(draw: st.DrawFn) -> Fabric:
    """Any network, likely or not."""
    rate = st.floats(1e6, 1e12)
    latency = st.floats(0.0, 1e-2)
    room = draw(st.integers(1, 8))
    network = Network(
        rails=draw(st.integers(1, 16)),
        rail_bandwidth=draw(rate),
        ring_bandwidth=draw(rate),
        switch_bandwidth=draw(st.none() | rate),
        switch_ranks=draw(st.integers(2, 8)),
        start=draw(latency),
        step=draw(latency),
        hop=draw(latency),
        ramp=draw(latency),
        fold=draw(st.floats(0.0, 1.0)),
        tree_efficiency=draw(st.floats(0.1, 1.0)),
        trees=draw(st.booleans()),
        serial_steps=draw(st.booleans()),
    )
    return Fabric(network, room, draw(st.integers(1, 5)))


def every_group(fabric: Fabric, ranks: int, fewest_nodes: int = 1) -> set[GroupShape]:
    """The shapes of all ways to put so many ranks on the nodes, by trying all."""
    counts = itertools.product(range(fabric.gpus_per_node + 1), repeat=fabric.num_nodes)
    return {
        shape_of([node for node, count in enumerate(own) for _ in range(count)])
        for own in counts
        if sum(own) == ranks and sum(count > 0 for count in own) >= fewest_nodes
    }


sizes = st.floats(0.0, 1e12)


@pytest.mark.slow
@given(fabrics(), st.sampled_from(COLLECTIVES), st.integers(1, 12), sizes, sizes, st.floats(0, 1))
def test_a_price_is_nondecreasing_and_concave_in_the_bytes(
    fabric: Fabric, collective: CollectiveName, ranks: int, a: float, b: float, share: float
):
    for group in every_group(fabric._replace(num_nodes=3), ranks):
        price = price_of(fabric, collective, group)
        low, high = sorted((a, b))
        assert price.seconds(low) <= price.seconds(high) * (1 + 1e-12)
        middle = price.seconds(share * a + (1 - share) * b)
        line = share * price.seconds(a) + (1 - share) * price.seconds(b)
        assert middle >= line * (1 - 1e-9)
        # Two groups of bytes in one call take no longer than in two.
        assert price.seconds(a + b) <= (price.seconds(a) + price.seconds(b)) * (1 + 1e-9)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(COLLECTIVES[:3]),
    st.integers(1, 8),
    st.integers(1, 40),
    st.floats(0.0, 1e11),
)
def test_more_nodes_with_as_many_ranks_each_are_never_faster(
    name: str, collective: CollectiveName, g: int, nodes: int, size: float
):
    before, after = (seconds(name, collective, k * g, k, size) for k in (nodes, nodes + 1))
    assert before <= after * (1 + 1e-12)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(COLLECTIVES[:3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 8),
    st.floats(0.0, 1e11),
)
def test_ranks_spread_over_more_nodes_are_never_faster(
    name: str, collective: CollectiveName, a: int, b: int, few: int, size: float
):
    # 2^a on each of `few` nodes, or on 2^b times as many nodes.
    g, spread = 2**a, 2 ** min(a, b)
    before = seconds(name, collective, few * g, few, size)
    after = seconds(name, collective, few * g, few * spread, size)
    assert before <= after * (1 + 1e-12)


def test_more_ranks_on_the_same_nodes_may_be_faster():
    # Each GPU brings its rail: the reason why bounds never go from fewer replicas to more.
    assert seconds("dgx-h100", "all_reduce", 64, 8, GiB) < seconds(
        "dgx-h100", "all_reduce", 8, 8, GiB
    )


@pytest.mark.slow
@given(fabrics(), st.sampled_from(COLLECTIVES), st.integers(1, 10), st.integers(1, 2), sizes)
def test_the_least_price_is_the_least_of_all_placements(
    fabric: Fabric, collective: CollectiveName, ranks: int, fewest: int, size: float
):
    groups = every_group(fabric, ranks, fewest)
    least = least_price(fabric, collective, range(ranks, ranks + 1), fewest).seconds(size)
    if groups:
        each = [price_of(fabric, collective, group).seconds(size) for group in groups]
        assert least == pytest.approx(min(each), rel=1e-9, abs=1e-15)


@pytest.mark.slow
@given(fabrics(), st.integers(2, 8), st.lists(sizes, min_size=1, max_size=4))
def test_a_price_for_an_array_is_the_price_of_each_entry(
    fabric: Fabric, ranks: int, size: list[float]
):
    price = least_price(fabric, "all_reduce", range(ranks, ranks + 1), 1)
    assert price.seconds(np.array(size)).tolist() == [price.seconds(own) for own in size]


@pytest.mark.slow
@given(fabrics(), st.integers(1, 10), st.integers(1, 10), sizes)
def test_a_price_that_is_said_to_be_never_above_another_one_never_is(
    fabric: Fabric, n: int, other: int, size: float
):
    prices = [
        price_of(fabric, "all_reduce", group)
        for ranks in (n, other)
        for group in sorted(every_group(fabric, ranks))
    ]
    for own, there in itertools.product(prices, prices):
        if own.is_never_above(there):
            assert own.seconds(size) <= there.seconds(size)


def test_a_lone_rank_pays_nothing():
    for collective in COLLECTIVES:
        assert seconds("p5", collective, 1, 1, GiB) == 0.0


def test_a_ring_without_a_switch_on_one_node_is_the_ring_of_the_links():
    # 8 ranks: 14 steps, and 7/8 of the bytes twice.
    network = Network(
        rails=1, rail_bandwidth=1e9, ring_bandwidth=100.0, start=0.0, step=0.5, hop=9.0
    )
    price = price_of(Fabric(network, 8, 1), "all_reduce", GroupShape(8, 1, 8))
    assert price.seconds(800) == pytest.approx(14 * 0.5 + 14 * 100 / 100)


def test_zero_1_pays_a_reduce_scatter_and_an_all_gather():
    for ranks, nodes in ((8, 1), (16, 2), (12, 3)):
        gradients = seconds("dgx-h100", "reduce_scatter", ranks, nodes, 3e8)
        weights = seconds("dgx-h100", "all_gather", ranks, nodes, 1e8)
        both = seconds("dgx-h100", "sharded_sync", ranks, nodes, 2e8)
        assert both == pytest.approx(gradients + weights)
    # The switch sums only in an all-reduce.
    assert seconds("dgx-h100", "sharded_sync", 8, 1, GiB) > seconds(
        "dgx-h100", "all_reduce", 8, 1, GiB
    )


def test_serial_steps_of_a_ring_over_nodes_take_a_hop_each():
    """Gloo: 7 steps between 8 ranks on two nodes, and 1 step between two of them."""
    network = Network(
        rails=1, rail_bandwidth=1e9, ring_bandwidth=1e10, start=0.0, step=1e-4, hop=0.04,
        trees=False, serial_steps=True,
    )  # fmt: skip
    fabric = Fabric(network, 4, 2)
    for ranks, per_node, steps in ((8, 4, 7), (2, 1, 1)):
        group = GroupShape(ranks, 2, per_node)
        assert price_of(fabric, "all_gather", group).seconds(0.0) == pytest.approx(0.04 * steps)
        assert price_of(fabric, "all_reduce", group).seconds(0.0) == pytest.approx(0.08 * steps)
    inside = price_of(fabric, "all_gather", GroupShape(4, 1, 4))
    assert inside.seconds(0.0) == pytest.approx(3e-4)


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_without_trees_an_all_reduce_over_nodes_is_two_turns_around_the_ring(nodes: int):
    network = Network(rails=4, rail_bandwidth=1e9, ring_bandwidth=1e10, trees=False)
    fabric = Fabric(network, 4, nodes)
    group = GroupShape(4 * nodes, nodes, 4)
    once = price_of(fabric, "all_gather", group).seconds(1e9)
    twice = price_of(fabric, "all_reduce", group).seconds(1e9)
    assert twice == pytest.approx(2 * once - network.start)
    # A switch inside a node is no tree between nodes.
    switched = Fabric(msgspec.structs.replace(network, switch_bandwidth=9e10, switch_ranks=4), 4, 1)
    assert price_of(switched, "all_reduce", GroupShape(4, 1, 4)).seconds(1e9) < 0.03
