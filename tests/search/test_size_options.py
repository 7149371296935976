import msgspec
import pytest

from autopart.errors import ClusterError, ProfileError, UsageError
from autopart.records.cluster import Cluster
from autopart.records.profile import Device
from autopart.search.size_options import (
    GpuCount,
    SizeOptions,
    counts_to_try,
    priced_kinds,
    tokens_in_sample,
)
from tests.support.problems import cluster
from tests.support.samples import sample_profile

NODE: Cluster = cluster(1, 4)


def tried(counts: str, most: int = 40, batch: int = 12) -> list[int]:
    asked = SizeOptions(tokens=1.0, counts=counts, most_gpus=most)
    return [count.gpus for count in counts_to_try(NODE, asked, batch)]


def test_powers_are_even_parts_of_a_node_and_powers_of_two_of_nodes() -> None:
    assert tried("powers") == [1, 2, 4, 8, 16, 32, 40]
    assert tried("auto", most=3) == [1, 2]


def test_other_words_and_lists() -> None:
    assert tried("nodes", most=12) == [1, 2, 4, 8, 12]
    assert tried("dividing") == [1, 2, 4, 8, 12, 16, 24]
    assert tried("8,2, 4") == [2, 4, 8]


def test_a_count_that_is_no_whole_nodes_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="try 8 or 12"):
        tried("8,10")


def test_too_many_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 4096"):
        tried("nodes", most=1 << 18)


def test_a_part_of_a_node_is_one_node() -> None:
    assert GpuCount(2, 1).of(NODE).gpus_per_node == 2
    whole = GpuCount(12, 3).of(NODE)
    assert (whole.num_nodes, whole.gpus_per_node) == (3, 4)


def test_tokens_are_the_length_of_the_input_of_token_ids() -> None:
    assert tokens_in_sample([sample_profile()], None) == 64
    assert tokens_in_sample([sample_profile()], 7) == 7


def test_a_kind_is_found_by_its_name_or_its_known_node() -> None:
    on_h100 = sample_profile(device=Device(kind="cuda", name="NVIDIA H100 80GB HBM3"))
    (kind,) = priced_kinds([on_h100], {"h100-sxm": 2.0}, {}, None)
    assert kind.node.gpus_per_node == 8
    (kind,) = priced_kinds([on_h100], {"p5": 3.0}, {}, 4)
    assert (kind.node.gpu, kind.node.gpus_per_node) == ("h100-sxm", 4)


@pytest.mark.parametrize(
    ("prices", "error", "said"),
    [
        ({}, UsageError, "no GPU kind has a price"),
        ({"cpu": -1.0}, UsageError, "cpu=-1 is no price"),
        ({"cpu": float("nan")}, UsageError, "is no price"),
        ({"h100": 1.0}, ClusterError, "did you mean h100-sxm or h100-pcie"),
        ({"l40s": 1.0}, ProfileError, "no profile for l40s; make one .* --gpu l40s"),
        ({"dgx-h100": 1.0}, ProfileError, "no profile for dgx-h100"),
    ],
)
def test_kinds_that_cannot_be_priced_are_refused(
    prices: dict[str, float], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        priced_kinds([sample_profile()], prices, {}, None)


def test_a_profile_without_a_price_and_profiles_of_two_models_are_refused() -> None:
    other = sample_profile(device=Device(kind="cuda", name="l40s"))
    with pytest.raises(UsageError, match="add l40s=PRICE"):
        priced_kinds([sample_profile(), other], {"cpu": 1.0}, {}, None)
    graph = sample_profile().graph
    fewer = msgspec.structs.replace(graph, layers=graph.layers[:-1])
    with pytest.raises(ProfileError, match="several models"):
        priced_kinds([sample_profile(), sample_profile(graph=fewer)], {"cpu": 1.0}, {}, None)


def test_more_gpus_than_a_known_node_has_are_refused() -> None:
    on_h100 = sample_profile(device=Device(kind="cuda", name="h100-sxm"))
    with pytest.raises(ClusterError, match="8 GPUs per node, not 16"):
        priced_kinds([on_h100], {"p5": 3.0}, {}, 16)
