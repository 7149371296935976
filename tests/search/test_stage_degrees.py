"""Plans whose stages have tensor degrees of their own, against trying everything."""

from typing import Any

import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError
from autopart.records.cluster import GpuGroup
from autopart.records.plan import Plan, load_plan, save_plan
from autopart.records.plan_degrees import has_several_degrees, rank_sizes, stage_groups
from autopart.records.profile import Profile
from autopart.records.rank_group import StageDegrees, group_size
from autopart.search.planner import baselines, solve
from tests.support.degree_plans import GIVEN, SLOW_SENDS, uneven_work
from tests.support.problems import cluster, profile
from tests.support.seeds import seeds
from tests.support.tensor_profiles import with_degrees
from tests.support.witness.cases import draw_case
from tests.support.witness.claims import judge

KIND = "tensor degrees per stage"


def solved(given: Profile = GIVEN, nodes: int = 1, gpus: int = 4, **options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 4, "tensor": "per-stage"}
    return solve(given, cluster(nodes, gpus, **SLOW_SENDS), **(words | options))


def solved_uneven(**options: Any) -> Plan:
    return solved(uneven_work(0), **({"num_microbatches": 16, "num_replicas": 1} | options))


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 6, 8])
def test_no_claim_on_degrees_per_stage_is_false(seed: int):
    """The witness tries each list of degrees with each partition, replicas and schedule."""
    assert judge(draw_case(KIND, seed)).broken == ()


@pytest.mark.parametrize("block", seeds(0, 12, slow=2))
def test_no_claim_on_more_degrees_per_stage_is_false(block: int):
    several = 0
    for seed in range(1000 + 20 * block, 1020 + 20 * block):
        verdict = judge(draw_case(KIND, seed), any_order=seed % 5 == 0)
        assert verdict.broken == (), seed
        several += verdict.plan is not None and has_several_degrees(verdict.plan)
    # Unless some plans had several degrees, the comparison would say little.
    assert several > 0


@pytest.mark.parametrize("seed", range(3))
def test_degrees_per_stage_are_never_worse_than_one_degree(seed: int):
    given, gpus = uneven_work(seed), 4 + 2 * (seed == 2)
    one = solved(given, gpus=gpus, tensor="auto", num_microbatches=8)
    own = solved(given, gpus=gpus, num_microbatches=8)
    assert own.prediction.step_time <= one.prediction.step_time * (1 + 1e-9)


def test_a_stage_with_more_work_takes_a_larger_group():
    plan = solved_uneven()
    assert has_several_degrees(plan)
    assert plan.certificate.gap == 0
    assert [group_size(tensor) for tensor in stage_groups(plan)] == [2, 1, 1]
    assert [len(stage.layers) for stage in plan.stages] == [1, 1, 1]
    assert rank_sizes(plan) == (2, 1, 1)
    assert all(check.passed for check in verify(plan, uneven_work(0)))
    one = solved_uneven(tensor="auto")
    assert plan.prediction.step_time < 0.94 * one.prediction.step_time


def test_the_plan_names_the_degrees_that_stages_could_have(tmp_path: Any):
    plan = solved_uneven()
    sets = [size.per_stage for size in plan.sizes if isinstance(size.per_stage, StageDegrees)]
    assert [(one.degrees, one.sequence_parallel) for one in sets] == [
        ((1, 2, 4), False),
        ((1, 2, 4), True),
    ]
    assert "or every stage's own of 1, 2, 4 (equal replicas" in plan.certificate.assumes
    bounds = [size.lower_bound for size in plan.sizes if size.lower_bound is not None]
    assert plan.certificate.lower_bound == min(bounds)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_copies_of_a_tied_parameter_have_one_degree():
    seeds_with_ties = [seed for seed in range(60) if draw_case(KIND, seed).problems[0].graph.tied][
        :3
    ]
    assert len(seeds_with_ties) == 3
    for seed in seeds_with_ties:
        assert judge(draw_case(KIND, seed)).broken == ()


def test_every_microbatch_size_has_degrees_per_stage():
    plan = solve(
        uneven_work(0), cluster(1, 4, **SLOW_SENDS), global_batch=4, microbatch_sizes=(1, 2),
        tensor="per-stage", sequence_parallel="off",
    )  # fmt: skip
    own = [size for size in plan.sizes if isinstance(size.per_stage, StageDegrees)]
    assert [size.microbatch_size for size in own] == [1, 2]
    assert all(check.passed for check in verify(plan, uneven_work(0)))


def test_baselines_stand_beside_a_plan_with_several_degrees():
    plan = solved_uneven()
    found = baselines(uneven_work(0), plan)
    for other in found.values():
        assert isinstance(other, Plan)
        assert other.prediction.step_time >= plan.prediction.step_time * (1 - 1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "bottleneck"}, "--tensor per-stage needs the step, not the bottleneck"),
        ({"replicas_per_stage": True}, "needs equal replicas, not --replicas per-stage"),
        ({"stages_per_rank": 2}, "needs one stage per rank"),
        ({"schedule": "zb-h1"}, "for tensor degrees of their own, schedule is one of gpipe, 1f1b"),
        ({"target": "megatron"}, "no --target takes several degrees"),
        ({"tensor": "per stage"}, "'per stage' is no tensor degree; write auto, per-stage, or"),
    ],
)
def test_choices_that_exclude_each_other_are_one_clear_line(options: dict[str, Any], said: str):
    with pytest.raises(AutopartError, match=said) as raised:
        solved(**options)
    assert "\n" not in str(raised.value)


def test_bad_profiles_and_nodes_are_one_clear_line():
    with pytest.raises(AutopartError, match="the profile has no tensor degree above 1, only 1"):
        solved(profile(GIVEN.graph))
    with pytest.raises(AutopartError, match=r"none of 1, 2, 2 with .* fills nodes of 1 GPU"):
        solved(nodes=4, gpus=1)
    kinds = tuple(
        GpuGroup(count=2, name=name, memory_bytes=10**9, speed=speed)
        for name, speed in (("fast", 1.0), ("slow", 0.5))
    )
    with pytest.raises(AutopartError, match="a tensor degree needs equal GPUs"):
        mixed = cluster(1, 4, gpus=kinds, memory_bytes=10**9)
        solve(GIVEN, mixed, num_microbatches=4, tensor="per-stage")


def test_a_profile_with_sequence_parallelism_alone_has_that_set_alone():
    only = with_degrees(uneven_work(0), 2)
    plan = solved(only, sequence_parallel="on")
    assert [
        size.per_stage.sequence_parallel
        for size in plan.sizes
        if isinstance(size.per_stage, StageDegrees)
    ] == [True]
