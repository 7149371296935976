import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost.links import send_time
from autopart.cost.probed_cluster import (
    cluster_of_probe,
    deviations,
    fit_link,
    log_deviation,
    notes_on_probe,
)
from autopart.cost.syncs import all_reduce_time
from autopart.records.cluster import Link, check_cluster, load_cluster, save_cluster
from autopart.records.measured_collectives import MeasuredCollectives
from autopart.records.probe import LinkReadings, Probe
from autopart.records.readings import CollectiveReadings, Reading

SIZES = (4, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20)


def readings_of(link: Link, noise: float = 0.0, seed: int = 0) -> tuple[Reading, ...]:
    rng = random.Random(seed)
    return tuple(
        Reading(
            num_bytes=size,
            time=send_time(link, size, 1) * (1 + rng.uniform(-noise, noise)),
            spread=0.0,
            count=5,
        )
        for size in SIZES
    )


def probe_of(**changes: object) -> Probe:
    """Two nodes with two ranks each: 1 GB/s inside, 10 MB/s across, all-reduces twice as slow as rings."""
    inside, across = Link(bandwidth=1e9, latency=1e-4), Link(bandwidth=1e7, latency=1e-3)
    reduced = tuple(
        Reading(num_bytes=size, time=2 * all_reduce_time(inside, size, 2), spread=0.0, count=5)
        for size in SIZES[3:]
    )
    base = Probe(
        device="cpu",
        device_name="Some CPU",
        gpu="cpu",
        backend="gloo",
        num_nodes=2,
        gpus_per_node=2,
        intra_node=LinkReadings(
            readings=readings_of(inside),
            num_pairs=2,
            all_reduce=reduced,
            all_reduce_ranks=2,
        ),
        inter_node=LinkReadings(readings=readings_of(across), num_pairs=1, hidden=0.9),
        host=readings_of(Link(bandwidth=5e9, latency=1e-6)),
        slowdown=1.2,
        slowdown_of_copies=1.7,
        action_overhead=2e-4,
        memory_bytes=8 << 30,
        reserve_bytes=300 << 20,
        host_memory_bytes=16 << 30,
        torch="2.13",
        created="2026-11-26T00:00:00+00:00",
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.slow
@given(
    st.floats(min_value=1e5, max_value=1e12),
    st.floats(min_value=0.0, max_value=1e-1),
)
def test_the_fit_recovers_the_link_that_made_the_times(bandwidth: float, latency: float) -> None:
    asked = Link(bandwidth=bandwidth, latency=latency)
    readings = readings_of(asked)
    assert max(deviations(fit_link(readings), readings)) < 1e-6


def test_one_slow_message_does_not_change_the_fit() -> None:
    asked = Link(bandwidth=1e9, latency=1e-4)
    readings = list(readings_of(asked))
    readings[3] = msgspec.structs.replace(readings[3], time=30 * readings[3].time)
    found = fit_link(readings)
    assert (found.bandwidth, found.latency) == pytest.approx((1e9, 1e-4), rel=1e-6)


def test_a_shaped_link_that_lets_the_first_bytes_through_at_once_keeps_its_bandwidth() -> None:
    """As measured behind a token bucket at 5 MB/s: a line through small messages only is 97 % off the others."""
    times = {4: 72e-6, 4096: 95e-6, 65536: 7.28e-3, 524288: 0.1034, 2097152: 0.4324, 8388608: 1.748}
    readings = [Reading(num_bytes=b, time=t, spread=0.0, count=5) for b, t in times.items()]
    assert fit_link(readings).bandwidth == pytest.approx(5e6, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_no_link_on_a_grid_fits_better(seed: int) -> None:
    asked = Link(bandwidth=1e8, latency=3e-4)
    readings = readings_of(asked, noise=0.3, seed=seed)
    best = log_deviation(fit_link(readings), readings)
    for factor in (0.7, 0.85, 1.0, 1.15, 1.3):
        for share in (0.0, 0.7, 0.85, 1.0, 1.15, 1.3):
            other = Link(bandwidth=factor * 1e8, latency=share * 3e-4)
            assert best <= log_deviation(other, readings) + 1e-9


def test_each_collective_has_the_line_through_its_own_times(tmp_path) -> None:
    lines = {
        "all_gather": Link(bandwidth=1e8, latency=2e-4),
        "reduce_scatter": Link(bandwidth=5e7, latency=3e-4),
        "all_to_all": Link(bandwidth=2e8, latency=1e-4),
    }
    probe = probe_of()
    assert probe.intra_node is not None
    measured = msgspec.structs.replace(
        probe.intra_node,
        collectives=tuple(
            CollectiveReadings(
                collective=name, ranks=2, nodes=1, at_once=1, readings=readings_of(line)
            )
            for name, line in lines.items()
        ),
    )
    made = cluster_of_probe(msgspec.structs.replace(probe, intra_node=measured))
    found = made.intra_node.collectives
    assert isinstance(found, MeasuredCollectives)
    assert found.ranks == 2
    for name, line in lines.items():
        own = getattr(found, name)
        assert own.bandwidth == pytest.approx(line.bandwidth)
        assert own.latency == pytest.approx(line.latency)
    for reading in probe.intra_node.all_reduce:
        seconds = found.all_reduce.latency + reading.num_bytes / found.all_reduce.bandwidth
        assert seconds == pytest.approx(reading.time)
    assert made.inter_node.collectives is msgspec.UNSET
    save_cluster(made, tmp_path / "cluster.json")
    assert load_cluster(tmp_path / "cluster.json") == made


def test_a_probe_gives_a_cluster_that_is_equal_after_save_and_load(tmp_path) -> None:
    made = cluster_of_probe(probe_of())
    check_cluster(made)
    assert made.inter_node.bandwidth == pytest.approx(1e7)
    assert made.intra_node.latency == pytest.approx(1e-4)
    assert made.intra_node.all_reduce_factor == pytest.approx(2.0)
    assert made.inter_node.all_reduce_factor == 1.0
    assert (made.compute_slowdown, made.sends_overlap) == (1.2, True)
    assert made.memory_slowdown == 1.7
    assert cluster_of_probe(probe_of(slowdown_of_copies=1.1)).memory_slowdown == 1.2
    assert cluster_of_probe(probe_of(device="cuda")).memory_slowdown is msgspec.UNSET
    assert made.host_link is not None and not made.host_link.overlaps
    for words in ("autopart probe", "2026-11-26", "Some CPU", "scatter by"):
        assert words in made.source
    save_cluster(made, tmp_path / "cluster.json")
    assert load_cluster(tmp_path / "cluster.json") == made


def test_with_one_rank_per_node_the_other_link_is_used_with_a_note() -> None:
    probe = probe_of(gpus_per_node=1, intra_node=None, slowdown=1.0)
    made = cluster_of_probe(probe)
    assert made.intra_node == made.inter_node
    assert any("each node has one rank" in note for note in notes_on_probe(probe))


def test_noisy_measurements_are_named() -> None:
    assert notes_on_probe(probe_of()) == ()
    readings = list(readings_of(Link(bandwidth=1e7)))
    readings[2] = msgspec.structs.replace(readings[2], spread=0.4)
    readings[4] = msgspec.structs.replace(readings[4], time=2 * readings[4].time)
    bad = LinkReadings(readings=tuple(readings), num_pairs=1)
    notes = notes_on_probe(probe_of(inter_node=bad, slowdown=0.9))
    for words in (
        "across nodes: messages of 4.0 MiB are 50.0 % off",
        "64.0 KiB scatter by 40.0 %",
        "faster together",
    ):
        assert any(words in note for note in notes), (words, notes)
