"""A plan by hand with a tensor degree for each stage."""

from typing import Any

import pytest

from autopart.errors import AutopartError
from autopart.exporters.targets import TARGETS, export_plan
from autopart.records.rank_group import Group, group_size
from autopart.report.plan_summary import plan_summary
from autopart.report.plan_table import figures, nodes_of, plan_title
from autopart.runtime.validation import validate_plan
from autopart.search.planner import solve
from tests.support.degree_plans import GIVEN, SLOW_SENDS, by_hand
from tests.support.problems import cluster


def test_a_stage_costs_what_it_costs_where_all_have_its_degree():
    mixed = by_hand((2,), (1, 2))
    for degree, at in ((1, 0), (2, 1)):
        whole = solve(
            GIVEN, cluster(1, 8, **SLOW_SENDS), num_microbatches=4, tensor=degree, schedule="1f1b",
            sequence_parallel="off", num_stages=2, num_replicas=1,
            same_stage=[[la.name for la in GIVEN.graph.layers[:2]]],
            different_stage=[[la.name for la in GIVEN.graph.layers[1:3]]],
        )  # fmt: skip
        assert whole.stages[at].layers == mixed.stages[at].layers
        own, theirs = mixed.prediction.stages[at], whole.prediction.stages[at]
        assert own.memory == theirs.memory
        assert (own.forward_time, own.backward_time) == (theirs.forward_time, theirs.backward_time)
        assert own.update_time == theirs.update_time


def test_a_sender_of_degree_1_sends_two_copies_to_a_group_of_two():
    there, back = (
        by_hand((2,), degrees).prediction.stages[0].send_time for degrees in ((1, 2), (2, 1))
    )
    assert there == pytest.approx(2 * back)


def test_slices_are_sent_once():
    there, back = (
        by_hand((2,), degrees, sequence_parallel="on").prediction.stages[0].send_time
        for degrees in ((1, 2), (2, 1))
    )
    assert there == pytest.approx(back)


def test_show_has_each_stage_with_its_degree_and_gpus():
    plan = by_hand((2,), (1, 2), num_replicas=2)
    shown = plan_summary(plan, "plan.json").stages
    assert [group_size(one.group) for one in shown] == [1, 2]
    assert shown[0].gpus == ((4,), (5,))
    assert shown[1].gpus == ((0, 1), (2, 3))
    assert "tensor degrees 1/2 on 6 of 8" in plan_title(plan)
    assert any("ranks stand side by side" in line for line in figures(plan))
    assert nodes_of(by_hand((2,), (1, 2), nodes=2, gpus=2), (0, 1)) == [0, 1]


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_export_refuses_several_degrees(target: str):
    with pytest.raises(
        AutopartError, match=r"the plan has tensor degrees 1/2, and .* has one degree"
    ):
        export_plan(by_hand((2,), (1, 2)), target)


@pytest.mark.parametrize("one_device", [True, False])
def test_validate_refuses_several_degrees(one_device: bool):
    with pytest.raises(
        AutopartError, match="the plan has tensor degrees 1/2, and validate has one"
    ):
        validate_plan(by_hand((2,), (1, 2)), "zoo:mlp-tiny", one_device=one_device)


@pytest.mark.parametrize(
    ("cuts", "degrees", "options", "said"),
    [
        ((2,), (1, 8), {}, "the profile has no tensor degree 8, only 1, 2"),
        ((2,), (1, 4), {"gpus": 2, "nodes": 4}, "does not fill a node of 2 GPUs"),
        ((2,), (4, 2), {"num_replicas": 2}, "2 replicas of degrees 4/2 need 12 GPUs in groups"),
        ((2, 1), (1, 2, 1), {}, "rising cuts"),
        ((2,), (2, 2), {}, "all stages have tensor degree 2"),
    ],
)
def test_bad_input_is_one_clear_line(
    cuts: tuple[int, ...], degrees: tuple[int, ...], options: dict[str, Any], said: str
):
    with pytest.raises(AutopartError, match=said) as raised:
        by_hand(cuts, degrees, **options)
    assert "\n" not in str(raised.value)


def test_degree_1_under_sequence_parallelism_is_the_plain_graph():
    plan = by_hand((2,), (1, 2), sequence_parallel="on")
    assert plan.stages[1].group == Group(tensor=2, sequence_parallel=True)
    alone = by_hand((2,), (1, 2))
    assert plan.prediction.stages[0].forward_time == alone.prediction.stages[0].forward_time
