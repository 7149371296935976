"""Pairs whose all-to-alls run beneath the other microbatch, against two streams played event by event."""

import random

import msgspec
import pytest

from autopart.cost.groups_as_ranks import layers_of_group
from autopart.cost.paired_exchanges import parts_beneath, with_overlapped_pair
from autopart.cost.uneven_experts import ExpertsPart, with_load
from autopart.records.cluster import Link
from autopart.records.group_variants import GroupVariant, LoadedLayers
from autopart.records.layer_graph import Layer
from autopart.records.training import Training
from tests.support.expert_profiles import LOADED, with_experts
from tests.support.problems import cluster, layer

MEGATRON = Training(sync="megatron")
MACHINE = cluster(1, 2, intra_node=Link(bandwidth=1000.0))
"""An all-to-all of 1,000 bytes among two GPUs takes 0.5 s."""


def played(f: float, b: float, part: ExpertsPart, exchanges: ExpertsPart) -> float:
    """The end of the last piece of work on two streams, each of which does its pieces in order."""
    (x, y), (c, d) = part, exchanges
    work = {
        "f before": (f - x, []),
        "combine of b": (d / 2, []),
        "experts of b": (y, ["f before", "combine of b"]),
        "dispatch of f": (c / 2, ["combine of b", "f before"]),
        "experts of f": (x, ["experts of b", "dispatch of f"]),
        "dispatch of b": (d / 2, ["dispatch of f", "experts of b"]),
        "b behind": (b - y, ["experts of f", "dispatch of b"]),
        "combine of f": (c / 2, ["dispatch of b", "experts of f"]),
    }
    ends: dict[str, float] = {}
    for name, (took, before) in work.items():
        ends[name] = took + max((ends[one] for one in before), default=0.0)
    return max(ends.values())


def test_a_pair_takes_as_long_as_two_streams_that_wait_for_each_other() -> None:
    rng = random.Random(1)
    for _ in range(200):
        f, b = rng.uniform(0, 4), rng.uniform(0, 8)
        part = ExpertsPart(rng.uniform(0, f), rng.uniform(0, b))
        exchanges = ExpertsPart(rng.uniform(0, 5), rng.uniform(0, 5))
        own = layer(
            "a",
            forward_time=f + exchanges.forward,
            input_grad_time=exchanges.backward + b / 3,
            weight_grad_time=b * 2 / 3,
            pair_time=f + b + sum(exchanges),
        )
        took = with_overlapped_pair(own, part, exchanges).pair_time
        assert took == pytest.approx(played(f, b, part, exchanges))
        backward = own.input_grad_time + own.weight_grad_time
        assert isinstance(took, float)
        assert (
            max(own.forward_time, backward) <= took + 1e-12 <= own.forward_time + backward + 2e-12
        )


def with_pairs(variant: GroupVariant) -> GroupVariant:
    """The variant of a profile with pair times, of an hour's rounds in turn."""

    def timed(one: Layer) -> Layer:
        both = one.forward_time + one.input_grad_time + one.weight_grad_time
        return msgspec.structs.replace(one, pair_time=both)

    graph = variant.graph
    layers = tuple(map(timed, graph.layers))
    return msgspec.structs.replace(
        variant,
        graph=msgspec.structs.replace(graph, layers=layers),
        loaded=LoadedLayers(imbalance=2, layers=(timed(LOADED),)),
    )


(VARIANT,) = map(with_pairs, with_experts().variants)


def of_group(variant: GroupVariant, training: Training, load: float | None = None) -> list[Layer]:
    assumed = msgspec.UNSET if load is None else load
    parts = parts_beneath(variant, assumed, training)
    graph = layers_of_group(with_load(variant, assumed), MACHINE, training, parts)
    return list(graph.layers)


def test_megatrons_pairs_hide_messages_as_by_hand() -> None:
    dense, experts = of_group(VARIANT, MEGATRON)
    assert dense.pair_time == 3.0
    # F 2 s, of which experts 1; B 4 s, of which 1.75. All-to-alls of 1 s each way; counts of 0.032 s in F before them.
    alone = 2 + 4 + 2 * 1.0 + 0.032
    assert experts.forward_time + experts.input_grad_time + experts.weight_grad_time == (
        pytest.approx(alone)
    )
    columns = [max(1.032, 0.5), max(1.75, 0.5), max(1.0, 0.5), max(2.25, 0.5)]
    assert experts.pair_time == pytest.approx(sum(columns)) == pytest.approx(alone - 2.0)


def test_an_imbalance_makes_parts_and_messages_longer() -> None:
    _, experts = of_group(VARIANT, MEGATRON, 1.5)
    # F 2.5 s, of which experts 1.5; B 4.875 s, of which 2.625. All-to-alls of 1.5 s each way.
    columns = [max(1.032, 0.75), max(2.625, 0.75), max(1.5, 0.75), max(2.25, 0.75)]
    assert experts.pair_time == pytest.approx(sum(columns))


@pytest.mark.parametrize("sync", ["end", "fsdp2"])
def test_other_frameworks_send_in_series(sync: str) -> None:
    _, experts = of_group(VARIANT, msgspec.structs.replace(MEGATRON, sync=sync))
    assert experts.pair_time == pytest.approx(2 + 4 + 2.032)


def test_pairs_without_times_or_without_a_second_load_save_nothing() -> None:
    (plain,) = with_experts().variants
    assert all(one.pair_time is msgspec.UNSET for one in of_group(plain, MEGATRON))
    older = msgspec.structs.replace(VARIANT, loaded=msgspec.UNSET)
    assert of_group(older, MEGATRON)[1].pair_time == pytest.approx(2 + 4 + 2.032)
