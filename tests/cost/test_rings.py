"""Prices of rings, beside sums over their turns."""

import msgspec
import pytest

from autopart.cost.groups_as_ranks import collective_times, layers_of_group
from autopart.cost.rings import RingTimes, ring_times
from autopart.records.cluster import Link
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives, Phase
from autopart.records.layer_graph import Recompute
from autopart.records.network import Network
from autopart.records.rank_group import Group
from autopart.records.training import Training
from tests.support.problems import chain_graph, cluster, layer

LINKS = {"intra_node": Link(bandwidth=10.0, latency=1.0), "inter_node": Link(bandwidth=1.0)}
"""A block of 20 bytes takes 3 s inside a node, and 20 s between nodes."""


def ring(turns: int, attend: float, phase: Phase = "forward") -> Collective:
    """Blocks of 20 bytes, and attention of `attend` seconds to each."""
    return Collective(
        kind="ring", bytes=20 * turns, phase=phase, among="context", compute_time=attend * turns
    )


@pytest.mark.parametrize(
    ("phase", "turns", "attend", "exposed", "hidden"),
    [
        ("forward", 2, 2.0, 1.0, 2.0),
        ("forward", 4, 2.0, 3.0, 6.0),
        ("forward", 4, 3.0, 0.0, 9.0),
        ("forward", 4, 0.0, 9.0, 0.0),
        # Of both turns, one sends a block and the other its gradients.
        ("input_grad", 2, 2.0, 2.0, 4.0),
        # The two turns between the first and the last one send both.
        ("input_grad", 4, 2.0, 1.0 + 4.0 + 4.0 + 1.0, 8.0),
        ("input_grad", 4, 5.0, 1.0 + 1.0, 16.0),
        ("input_grad", 4, 6.0, 0.0, 18.0),
    ],
)
def test_each_turn_takes_the_longer_of_its_attention_and_its_messages(
    phase: Phase, turns: int, attend: float, exposed: float, hidden: float
) -> None:
    found = ring_times(ring(turns, attend, phase), cluster(1, 8, **LINKS), range(turns))
    assert found == pytest.approx((exposed, hidden))


@pytest.mark.parametrize(("phase", "messages"), [("forward", 3), ("input_grad", 6)])
def test_nothing_is_hidden_where_sends_keep_ranks_busy(phase: Phase, messages: int) -> None:
    on = cluster(1, 4, sends_overlap=False, **LINKS)
    assert ring_times(ring(4, 9.0, phase), on, range(4)) == RingTimes(3.0 * messages, 0.0)


def test_slower_gpus_hide_more() -> None:
    on = cluster(1, 4, compute_slowdown=1.25, **LINKS)
    assert ring_times(ring(4, 2.0), on, range(4)).exposed == pytest.approx(3 * (3 - 2.5))


def test_attention_of_unknown_seconds_hides_all() -> None:
    one = msgspec.structs.replace(ring(4, 0.0), compute_time=msgspec.UNSET)
    assert ring_times(one, cluster(1, 4, **LINKS), range(4)) == RingTimes(0.0, 9.0)


def test_the_slowest_link_between_neighbours_decides() -> None:
    """The ring goes from GPU 4 back to GPU 0 too. Between nodes a GPU has its own share of the rails."""
    apart = cluster(2, 4, **LINKS)
    assert ring_times(ring(4, 0.0), apart, range(0, 8, 2)).exposed == pytest.approx(3 * 20)
    rails = Network(rails=2, rail_bandwidth=1.0, ring_bandwidth=9.0)
    slow = msgspec.structs.replace(apart, network=rails)
    assert ring_times(ring(4, 0.0), slow, range(0, 8, 2)).exposed == pytest.approx(3 * 40)


def variant(*collectives: Collective) -> GroupVariant:
    one = layer(
        "a",
        forward_time=10.0,
        input_grad_time=10.0,
        weight_grad_time=10.0,
        recompute=Recompute(extra_time=10.0, stash_bytes=0),
    )
    return GroupVariant(
        group=Group(context=4, exchange="ring", data=2, shard="zero3", reduce="microbatch"),
        graph=chain_graph(one, layer("b")),
        collectives=(LayerCollectives(layer="a", collectives=collectives),),
    )


def gather(seconds: int, phase: Phase) -> Collective:
    """A gather of weights between two GPUs: half of two turns of a ring."""
    return Collective(kind="all_gather", bytes=20 * (seconds - 1), phase=phase, among="data")


def test_exposed_seconds_are_added_and_hidden_ones_share_the_link_with_gathers() -> None:
    own = variant(
        msgspec.structs.replace(ring(4, 2.0), recomputed=True),
        ring(4, 2.0, "input_grad"),
        gather(8, "forward"),
        gather(20, "input_grad"),
    )
    times = collective_times(own.collectives, cluster(1, 8, **LINKS), own.group)["a"]
    assert (times.forward, times.hidden_forward, times.hidden_again) == pytest.approx((3, 6, 6))
    assert (times.input_grad, times.hidden_backward) == pytest.approx((10, 8))
    assert (times.gather_forward, times.gather_backward) == pytest.approx((8, 20))
    found = layers_of_group(own, cluster(1, 8, **LINKS), Training()).layers[0]
    assert found.forward_time == pytest.approx(max(10, 8 + 6) + 3)
    whole = found.input_grad_time + found.weight_grad_time
    assert whole == pytest.approx(max(20, 20 + 8) + 10)
    assert found.recompute is not None
    # Alone, I has 28 s of messages; with the forward again 34 s.
    assert found.recompute.extra_time == pytest.approx(max(34, 30) - 28 + 3)


def test_without_sharded_state_only_exposed_seconds_are_added() -> None:
    own = variant(ring(4, 2.0), ring(4, 2.0, "input_grad"))
    found = layers_of_group(own, cluster(1, 8, **LINKS), Training()).layers[0]
    assert (found.forward_time, found.input_grad_time, found.weight_grad_time) == (13, 20, 10)
    assert found.split_time == 0.0
