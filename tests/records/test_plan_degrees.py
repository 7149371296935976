"""The tensor degrees of a plan, and the GPUs of its ranks."""

from pathlib import Path

import msgspec
import pytest

from autopart.errors import PlanError
from autopart.records.plan import Plan, Stage, check_plan, load_plan, save_plan
from autopart.records.plan_degrees import (
    check_one_gpu_per_rank,
    degrees_name,
    gpus_of_ranks,
    has_several_degrees,
    num_processes,
    rank_sizes,
    stage_groups,
)
from autopart.records.rank_group import Group, group_size
from tests.support.degree_plans import by_hand
from tests.support.tensor_plans import in_groups


def with_stage(plan: Plan, at: int, **changes: object) -> Plan:
    stages: list[Stage] = list(plan.stages)
    stages[at] = msgspec.structs.replace(stages[at], **changes)
    return msgspec.structs.replace(plan, stages=tuple(stages))


def test_ranks_of_one_degree_are_groups_side_by_side():
    assert gpus_of_ranks([2, 2, 2]) == [range(2), range(2, 4), range(4, 6)]


def test_ranks_of_several_degrees_stand_side_by_side():
    plan = by_hand((2,), (1, 2), num_replicas=2)
    assert [group_size(one) for one in stage_groups(plan)] == [1, 2]
    assert plan.stages[1].ranks == (0, 1)
    assert plan.stages[0].ranks == (2, 3)
    assert rank_sizes(plan) == (2, 2, 1, 1)
    assert gpus_of_ranks(rank_sizes(plan)) == [range(2), range(2, 4), range(4, 5), range(5, 6)]
    assert num_processes(plan) == 6
    assert degrees_name(plan) == "tensor degrees 1/2"


def test_a_plan_with_one_degree_says_it_itself():
    plan = in_groups(by_hand_of_one(), 2)
    assert not has_several_degrees(plan)
    assert set(rank_sizes(plan)) == {2}
    assert num_processes(plan) == 2 * len(plan.orders)


def by_hand_of_one() -> Plan:
    plan = by_hand((2,), (1, 2))
    return msgspec.structs.replace(
        plan,
        stages=tuple(msgspec.structs.replace(s, group=msgspec.UNSET) for s in plan.stages),
    )


def test_a_plan_with_several_degrees_is_read_as_it_was_written(tmp_path: Path):
    for split in ("on", "off"):
        plan = by_hand((1, 3), (4, 2, 1), sequence_parallel=split)
        save_plan(plan, tmp_path / "plan.json")
        assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("at", "changes", "said"),
    [
        (1, {"group": Group(tensor=4, sequence_parallel=True)}, "some stages have sequence"),
        (
            1,
            {"group": Group(tensor=2, sequence_parallel=False)},
            "all stages have tensor degree 2",
        ),
        (
            1,
            {"group": Group(tensor=3, sequence_parallel=False)},
            "does not fill a node of 8 GPUs",
        ),
        (0, {"ranks": (0,)}, "share a rank"),
    ],
)
def test_degrees_that_contradict_each_other_are_refused(
    at: int, changes: dict[str, object], said: str
):
    plan = by_hand((2,), (2, 4))
    check_plan(plan)
    with pytest.raises(PlanError, match=said):
        check_plan(with_stage(plan, at, **changes))


def test_a_plan_has_one_degree_or_several():
    tensor = Group(tensor=2, sequence_parallel=False)
    with pytest.raises(PlanError, match="the plan has a group, and so have stages"):
        check_plan(msgspec.structs.replace(by_hand((2,), (2, 4)), group=tensor))


def test_a_group_starts_at_a_multiple_of_its_size():
    plan = by_hand((2,), (1, 2))
    swapped = with_stage(with_stage(plan, 0, ranks=(0,)), 1, ranks=(1,))
    with pytest.raises(
        PlanError, match="rank 1 is the GPUs 1 to 2, but a tensor group of 2 starts"
    ):
        check_plan(msgspec.structs.replace(swapped, orders=plan.orders[::-1]))


def test_more_gpus_than_the_cluster_has_are_refused():
    plan = by_hand((1, 3), (4, 2, 1), gpus=8)
    smaller = msgspec.structs.replace(plan.cluster, gpus_per_node=4)
    with pytest.raises(PlanError, match="its ranks are 7 GPUs, and the cluster has 4"):
        check_plan(msgspec.structs.replace(plan, cluster=smaller))


def test_what_has_no_tensor_groups_refuses_several_degrees():
    with pytest.raises(
        PlanError, match="the plan has tensor degrees 1/2, and it takes no tensor group"
    ):
        check_one_gpu_per_rank(by_hand((2,), (1, 2)), "it")
