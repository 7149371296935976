"""Plans with a tensor degree, against trying everything, and what `solve` says about degrees."""

from typing import Any

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.cluster import GpuGroup, Link
from autopart.records.files import encode
from autopart.records.plan import Plan, load_plan, save_plan
from autopart.records.profile import Profile
from autopart.records.rank_group import Group, group_size
from autopart.report.plan_summary import plan_summary
from autopart.report.plan_table import figures, nodes_of, plan_title
from autopart.search.planner import baselines, solve
from tests.support.plan_kinds import RICH, ROW
from tests.support.problems import cluster, profile
from tests.support.seeds import seeds
from tests.support.tensor_profiles import with_degrees
from tests.support.witness.cases import draw_case
from tests.support.witness.claims import judge

SLOW_SENDS = {"intra_node": Link(bandwidth=200.0), "inter_node": Link(bandwidth=20.0)}
GIVEN = with_degrees(ROW, 2, 4, whole=8)


def solved(given: Profile = GIVEN, nodes: int = 1, gpus: int = 4, **options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 4, "tensor": "auto"}
    return solve(given, cluster(nodes, gpus, **SLOW_SENDS), **(words | options))


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 15, 16])
def test_no_claim_on_tensor_degrees_is_false(seed: int):
    """The witness tries each degree with each partition, placement and schedule; more seeds: test_witness.py."""
    assert judge(draw_case("tensor degrees", seed)).broken == ()


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(0, 6))
def test_no_claim_on_more_tensor_degrees_is_false(block: int):
    broken = [
        (seed, claim)
        for seed in range(1000 + 50 * block, 1050 + 50 * block)
        for claim in judge(draw_case("tensor degrees", seed), any_order=seed % 5 == 0).broken
    ]
    assert broken == []


@pytest.mark.parametrize("seed", range(8))
def test_more_degrees_are_never_worse(seed: int):
    given = with_degrees(RICH, 2, 4, whole=[1, 20, 100, 400][seed % 4])
    nodes, gpus = [(1, 4), (2, 4)][seed // 4]
    free = solved(given, nodes, gpus).prediction.step_time
    one = [
        solved(given, nodes, gpus, tensor=t, sequence_parallel=split).prediction.step_time
        for t, split in [(1, "auto"), (2, "off"), (2, "on"), (4, "off"), (4, "on")]
    ]
    assert free == pytest.approx(min(one))


def test_a_plan_says_its_degree_and_each_degree_that_was_searched():
    plan = solved(num_stages=1, num_replicas=1)
    assert plan.group == Group(tensor=4, sequence_parallel=False)
    assert [group_size(size.group) for size in plan.sizes] == [1, 2, 2, 4, 4]
    assert plan.stages[0].ranks == (0,)
    assert "every tensor degree in 1, 2, 4 without and with sequence" in plan.certificate.assumes
    bounds = [size.lower_bound for size in plan.sizes if size.lower_bound is not None]
    assert plan.certificate.lower_bound == min(bounds)
    assert all(check.passed for check in verify(plan, GIVEN))


def test_without_a_degree_a_plan_is_as_before():
    plan = solved(tensor=1)
    assert plan == msgspec.structs.replace(
        solve(GIVEN, cluster(1, 4, **SLOW_SENDS), num_microbatches=4), origin=plan.origin
    )
    assert b'"group"' not in encode(plan)
    assert plan.stages == solved(ROW, tensor=1).stages


def test_degrees_that_do_not_divide_a_node_are_left_out():
    plan = solved(nodes=2, gpus=2)
    assert [group_size(size.group) for size in plan.sizes] == [1, 2, 2]


def test_microbatch_sizes_and_degrees_are_searched_together():
    plan = solved(num_microbatches=None, global_batch=8, microbatch_sizes=[1, 2])
    assert [(s.microbatch_size, group_size(s.group)) for s in plan.sizes] == [
        (size, degree) for size in (1, 2) for degree in (1, 2, 2, 4, 4)
    ]
    assert all(check.passed for check in verify(plan, GIVEN))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 3}, "the profile has no tensor degree 3, only 1, 2, 2 with sequence"),
        ({"tensor": 3}, "profile the model again: autopart profile test --tensor 3"),
        ({"tensor": 4, "gpus": 2}, "a tensor group of 4 GPUs does not fill a node of 2 GPUs"),
        ({"tensor": 4, "gpus": 6}, "must divide the GPUs of a node, as 1, 2, 3, 6 do"),
        (
            {"tensor": "two"},
            "'two' is no tensor degree; write auto, per-stage, or a number such as 8",
        ),
        ({"tensor": 0}, "'0' is no tensor degree"),
        ({"tensor": 1, "sequence_parallel": "on"}, "--sequence-parallel on splits the sequence"),
        ({"sequence_parallel": "yes"}, "unknown --sequence-parallel 'yes'; known: auto, on, off"),
        ({"given": ROW}, "the profile has no tensor degree above 1, only 1; profile the model"),
        ({"given": ROW, "tensor": 2}, "--tensor 2$"),
    ],
)
def test_a_degree_that_is_not_there_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(AutopartError, match=message):
        solved(**options)


def test_different_gpus_have_no_tensor_groups():
    kinds = tuple(
        GpuGroup(count=2, name=name, memory_bytes=1 << 40, speed=speed)
        for name, speed in (("a", 1.0), ("b", 0.5))
    )
    with pytest.raises(AutopartError, match="a tensor degree needs equal GPUs"):
        solve(GIVEN, cluster(1, 4, gpus=kinds), num_microbatches=4, tensor="auto")


def test_a_layer_that_cannot_be_recomputed_at_a_degree_is_named_with_it():
    shard = GIVEN.variants[0]
    layers = tuple(msgspec.structs.replace(la, recompute=None) for la in shard.graph.layers)
    graph = msgspec.structs.replace(shard.graph, layers=layers)
    other = msgspec.structs.replace(GIVEN, variants=(msgspec.structs.replace(shard, graph=graph),))
    with pytest.raises(AutopartError, match=r"^tensor degree 2: layer 'l1' cannot be recomputed"):
        solved(other, recompute_layers=["l1"])


def test_too_little_memory_names_the_degree_that_needs_the_least():
    small = cluster(1, 4, memory_bytes=90)
    with pytest.raises(
        InfeasibleError, match=r"^tensor degree 4.*needs the least memory of 1, 2, 4: no"
    ) as told:
        solve(GIVEN, small, num_microbatches=4, tensor="auto")
    least = told.value.least_bytes
    assert least is not None
    fitting = solve(GIVEN, cluster(1, 4, memory_bytes=least), num_microbatches=4, tensor="auto")
    assert max(fitting.prediction.rank_peak_bytes) == least
    with pytest.raises(InfeasibleError):
        solve(GIVEN, cluster(1, 4, memory_bytes=least - 1), num_microbatches=4, tensor="auto")


def test_the_gpus_that_would_do_are_counted_one_by_one():
    """Each layer's state is 80 bytes on one of two GPUs, so one group holds less than five layers, and two hold them."""
    small = cluster(1, 2, memory_bytes=500)
    with pytest.raises(
        InfeasibleError, match=r"^tensor degree 2: .*; 4 GPUs of this memory would"
    ) as told:
        solve(GIVEN, small, num_microbatches=4, tensor=2, sequence_parallel="off")
    assert "4 in whole nodes" not in str(told.value)
    large = cluster(2, 2, memory_bytes=500)
    plan = solve(GIVEN, large, num_microbatches=4, tensor=2, sequence_parallel="off")
    assert len(plan.stages) == 2


def test_a_degree_that_would_do_is_named_where_none_was_asked_for():
    small = cluster(1, 4, memory_bytes=450)
    with pytest.raises(InfeasibleError, match=r"; --tensor 2 would do$"):
        solve(GIVEN, small, num_microbatches=4, num_stages=2, tensor=1)
    assert solve(GIVEN, small, num_microbatches=4, num_stages=2, tensor=2).stages
    with pytest.raises(InfeasibleError) as told:
        solve(ROW, small, num_microbatches=4, num_stages=2)
    assert "--tensor" not in str(told.value)


def test_baselines_have_the_degree_of_the_plan():
    plan = solved(num_stages=2)
    beside = baselines(GIVEN, plan)
    for other in beside.values():
        assert isinstance(other, Plan)
        assert other.group == plan.group
        assert other.prediction.step_time >= plan.prediction.step_time * (1 - 1e-9)


def test_tables_and_documents_show_the_degree(tmp_path: Any):
    plan = solved(nodes=2, tensor=2, sequence_parallel="off", num_stages=2)
    assert plan_title(plan).startswith(
        "test in 2 stages x 2 replicas x tensor degree 2 on 8 of 8 test"
    )
    assert "tensor degree 2: rank q is the GPUs 2 q to 2 q + 1 of a node" in " ".join(figures(plan))
    assert nodes_of(plan, (0, 1, 2)) == [0, 1]
    document = msgspec.to_builtins(plan_summary(plan, "plan.json"))
    assert document["group"] == {"tensor": 2}
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_a_profile_without_layers_to_share_still_has_its_degrees():
    one = profile(msgspec.structs.replace(ROW.graph, layers=ROW.graph.layers[:1], values=()))
    plan = solved(with_degrees(one, 2, whole=0), num_stages=1, num_replicas=1)
    assert group_size(plan.group) == 2
