"""The network record from measured times: figures come back, and what was not measured stays."""

import math
import random

import msgspec
import pytest

from autopart.cost.collectives import Fabric, GroupShape, price_of
from autopart.cost.probed_network import fit_network, rails_of, shares_rails
from autopart.records.known_clusters import PRESETS
from autopart.records.network import Network
from autopart.records.readings import CollectiveReadings, NetworkReadings, Reading
from tests.support.drawn_readings import COLLECTIVES, MiB, readings_of

NOISE = 0.05
SHOWN = ("rail_bandwidth", "ring_bandwidth", "all_to_all_efficiency", "off_rail")
"""Figures that messages of many megabytes show."""


def drawn(seed: int, per_node: int, *, trees: bool) -> Network:
    """A network with latencies that a message of 1 MiB shows."""
    rng = random.Random(seed)

    def between(least: float, most: float) -> float:
        return math.exp(rng.uniform(math.log(least), math.log(most)))

    return Network(
        rails=rng.choice([n for n in (1, 2, 4, 8) if n <= per_node]),
        rail_bandwidth=between(1e10, 5e10),
        ring_bandwidth=between(1e11, 5e11),
        start=between(5e-6, 5e-5),
        step=between(2e-6, 2e-5),
        hop=between(1e-5, 1e-4),
        ramp=between(4e-5, 2e-4),
        tree_efficiency=rng.uniform(0.3, 0.8),
        peer=between(3e-6, 3e-5),
        all_to_all_efficiency=rng.uniform(0.5, 0.95),
        off_rail=rng.choice([1.0, 0.5]),
        slowdown=rng.uniform(0.0, 0.5),
        trees=trees,
        serial_steps=not trees,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("trees", [True, False])
def test_the_figures_that_made_noisy_times_come_back(seed: int, trees: bool) -> None:
    nodes, per_node = (2, 4, 8)[seed % 3], (4, 8)[seed % 2]
    asked = drawn(seed, per_node, trees=trees)
    measured = readings_of(asked, nodes, per_node, NOISE, seed)
    found = fit_network(measured, nodes, per_node, is_nccl=trees)
    assert (found.rails, found.trees, found.switch_bandwidth) == (asked.rails, trees, None)
    for name in SHOWN:
        assert getattr(found, name) == pytest.approx(getattr(asked, name), rel=0.05), name
    assert found.slowdown == pytest.approx(asked.slowdown)
    assert found.hop == pytest.approx(asked.hop, rel=0.2)
    # Groups that no reading has are priced as by the network that made the times.
    for shape in (
        GroupShape(3 * nodes, nodes, 3),
        GroupShape(per_node + 1, 2, 1),
        GroupShape(3, 1, 3),
    ):
        for collective in COLLECTIVES:
            for size in (3 * MiB, 100 * MiB):
                prices = [
                    price_of(Fabric(one, per_node, nodes), collective, shape).seconds(float(size))
                    for one in (found, asked)
                ]
                assert prices[0] == pytest.approx(prices[1], rel=0.15), (collective, shape, size)


@pytest.mark.parametrize("name", ["dgx-h100", "dgx-a100", "p4d", "gb200-nvl72", "a100-pcie"])
def test_a_known_cluster_is_found_from_its_own_times(name: str) -> None:
    preset = PRESETS[name]
    measured = readings_of(preset.network, 4, preset.gpus_per_node, 0.0, 0)
    found = fit_network(measured, 4, preset.gpus_per_node, is_nccl=True)
    for field, asked in msgspec.structs.asdict(preset.network).items():
        if isinstance(asked, float):
            assert getattr(found, field) == pytest.approx(asked, rel=2e-3), field
        else:
            assert getattr(found, field) == asked, field


def test_one_disturbed_message_moves_little() -> None:
    asked = drawn(3, 8, trees=True)
    measured = readings_of(asked, 2, 8, 0.01, 0)
    bad = measured.collectives[5]
    slow = msgspec.structs.replace(bad.readings[4], time=10 * bad.readings[4].time)
    disturbed = msgspec.structs.replace(bad, readings=(*bad.readings[:4], slow, bad.readings[5]))
    changed = msgspec.structs.replace(
        measured,
        collectives=(*measured.collectives[:5], disturbed, *measured.collectives[6:]),
    )
    found = fit_network(changed, 2, 8, is_nccl=True)
    for name in SHOWN:
        assert getattr(found, name) == pytest.approx(getattr(asked, name), rel=0.03), name


def one_group(
    ranks: int, nodes: int, at_once: int, *times: tuple[int, float]
) -> CollectiveReadings:
    return CollectiveReadings(
        collective="all_gather",
        ranks=ranks,
        nodes=nodes,
        at_once=at_once,
        readings=tuple(
            Reading(num_bytes=size, time=seconds, spread=0.0, count=3) for size, seconds in times
        ),
    )


@pytest.mark.parametrize(("ratio", "rails"), [(1.0, 8), (1.1, 8), (2.1, 4), (3.6, 2), (9.0, 1)])
def test_rails_follow_from_groups_at_once_over_one_alone(ratio: float, rails: int) -> None:
    # All have a latency of 5 s. The largest sizes that both have decide.
    alone = one_group(2, 2, 1, (MiB, 6.0), (4 * MiB, 9.0), (16 * MiB, 77.0))
    together = one_group(2, 2, 8, (MiB, 5.0 + ratio), (4 * MiB, 5.0 + 4.0 * ratio))
    measured = NetworkReadings(sends=(), collectives=(alone, together))
    assert rails_of(measured, 8) == rails


def test_a_price_is_meant_for_all_gpus_that_share_a_rail() -> None:
    lone, all_of = one_group(2, 2, 1), one_group(2, 2, 4)
    assert not shares_rails(lone, 4, rails=1)
    assert shares_rails(lone, 4, rails=4) and shares_rails(all_of, 4, rails=1)
    assert shares_rails(one_group(2, 1, 1), 4, rails=1)


def test_figures_without_a_measurement_keep_their_defaults() -> None:
    only = one_group(2, 2, 1, (MiB, 1e-3), (16 * MiB, 13e-3))
    found = fit_network(NetworkReadings(sends=(), collectives=(only,)), 2, 1, is_nccl=True)
    usual = Network(rails=1, rail_bandwidth=1.0, ring_bandwidth=1.0)
    for name in ("step", "ramp", "fold", "tree_efficiency", "peer", "off_rail", "slowdown"):
        assert getattr(found, name) == pytest.approx(getattr(usual, name), rel=1e-3), name
    # 15 MiB, half of which each rank sends, took 12 ms.
    assert found.rail_bandwidth == pytest.approx(15 * MiB / 2 / 12e-3, rel=0.02)


def test_without_a_collective_over_nodes_nothing_is_fitted() -> None:
    inside = one_group(2, 1, 1, (MiB, 1e-3))
    with pytest.raises(ValueError, match="over several nodes"):
        fit_network(NetworkReadings(sends=(), collectives=(inside,)), 2, 2, is_nccl=True)
