"""Changes of a cluster and of options, as users write them."""

import re

import msgspec
import pytest

from autopart.errors import AutopartError, UsageError
from autopart.records.cluster import Cluster, GpuGroup, HostLink, Link, cluster_of
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.search.options import SolveOptions
from autopart.search.what_if import Change, changed, parse_scenario

PLAIN = msgspec.structs.replace(
    cluster_of("h100-sxm", 8, 2),
    memory_bytes=64 << 30,
    intra_node=Link(bandwidth=400.0),
    inter_node=Link(bandwidth=50.0),
)


def after(text: str, cluster: Cluster = PLAIN, **options: object) -> tuple[Cluster, SolveOptions]:
    return changed(parse_scenario(text), cluster, SolveOptions(**options))  # pyright: ignore[reportArgumentType]


def test_a_scenario_has_several_changes_and_lists_stay_whole() -> None:
    assert parse_scenario("memory=+8GiB, schedule=zb-h1,zb-h2,nodes=2x") == (
        Change("memory", "+8GiB"),
        Change("schedule", "zb-h1,zb-h2"),
        Change("nodes", "2x"),
    )


@pytest.mark.parametrize(
    ("value", "gib"),
    [("2x", 128), ("+8GiB", 72), ("-32GiB", 32), ("80GiB", 80), ("+50%", 96), ("-25%", 48)],
)
def test_a_size_may_grow_shrink_or_be_new(value: str, gib: int) -> None:
    assert after(f"memory={value}")[0].memory_bytes == gib << 30


def test_a_bandwidth_takes_the_rates_of_collectives_along() -> None:
    known = preset_cluster(find_preset("dgx-h100"), 2)
    network = known.network
    assert network is not None
    faster = after("inter-bandwidth=2x", known)[0]
    assert faster.inter_node.bandwidth == 2 * known.inter_node.bandwidth
    assert faster.network == msgspec.structs.replace(
        network, rail_bandwidth=2 * network.rail_bandwidth
    )
    inside = after("intra-bandwidth=+10%", known)[0].network
    assert inside is not None and inside.rail_bandwidth == network.rail_bandwidth
    assert inside.ring_bandwidth == pytest.approx(1.1 * network.ring_bandwidth)


def test_counts_and_words() -> None:
    assert after("nodes=+1")[0].num_nodes == 3
    assert after("gpus-per-node=2x")[0].gpus_per_node == 8
    assert after("global-batch=+8", global_batch=16)[1].global_batch == 24
    assert after("recompute=auto,zero1=on")[1] == SolveOptions(recompute="auto", zero1=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("internode-bandwidth=2x", "did you mean inter-bandwidth?"),
        ("memroy=2x", "did you mean memory?"),
        ("", "'' is nothing to change"),
        ("memory", "gives memory no value"),
        ("memory=", "gives memory no value"),
    ],
)
def test_an_unknown_change_is_refused_with_the_nearest_name(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_scenario(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory=-100GiB", "leaves less than nothing"),
        ("memory=nanx", "is no number"),
        ("memory=infx", "is no number"),
        ("memory=1e400x", "is no number"),
        ("memory=+much%", "is no number"),
        ("memory=many", "is not a size"),
        ("inter-bandwidth=0x", "leaves no bandwidth"),
        ("nodes=0x", "whole number from 1 on"),
        ("nodes=-2", "whole number from 1 on"),
        ("nodes=1.3x", "whole number from 1 on"),
        ("stages=+1", "has no value yet"),
        ("host-memory=+1GiB", "has no value yet"),
        ("zero1=maybe", "zero1=on or zero1=off"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(text: str, said: str) -> None:
    with pytest.raises(AutopartError, match=re.escape(said)):
        after(text)


def test_listed_gpus_have_memory_and_counts_of_their_own() -> None:
    group = GpuGroup(count=8, name="one", memory_bytes=PLAIN.memory_bytes)
    mixed = msgspec.structs.replace(PLAIN, gpus=(group,))
    for text in ("memory=2x", "nodes=2x", "gpus-per-node=2x"):
        with pytest.raises(UsageError, match="for equal GPUs"):
            after(text, mixed)


def test_a_cluster_without_a_host_link_has_no_host_bandwidth() -> None:
    alone = msgspec.structs.replace(PLAIN, host_link=None)
    with pytest.raises(UsageError, match="no link to its host"):
        after("host-bandwidth=2x", alone)
    linked = msgspec.structs.replace(PLAIN, host_link=HostLink(bandwidth=10.0))
    found = after("host-bandwidth=2x", linked)[0].host_link
    assert found is not None and found.bandwidth == 20.0
