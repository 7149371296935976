"""`verify` on plans whose stages have tensor degrees of their own: altered plans and consistent lies."""

from typing import Any

import msgspec
import pytest

from autopart.certificate.certificate import certificate
from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.prediction import predict_again
from autopart.certificate.verify import verify
from autopart.records.group_choice import GroupDemand
from autopart.records.plan import Certificate, Plan, SearchedSize, stage_ranks
from autopart.records.rank_group import Group, StageDegrees
from autopart.schedules.catalogue import orders_by_name
from autopart.search.planner import solve
from tests.support.degree_plans import SLOW_SENDS, uneven_work
from tests.support.problems import cluster

GIVEN = uneven_work(0)
PLAN = solve(
    GIVEN,
    cluster(1, 8, **SLOW_SENDS),
    num_microbatches=16,
    num_replicas=2,
    tensor="per-stage",
    sequence_parallel="off",
)
"""Stages of degrees 2, 1 and 1, in two replicas; searched: 1, 2, 4, and degrees per stage."""


def refusal(plan: Plan) -> str:
    checks = verify(plan, GIVEN)
    assert not checks[-1].passed, plan
    return f"{checks[-1].name}: {checks[-1].detail}"


def changed_stage(at: int, **fields: Any) -> Plan:
    stages = list(PLAN.stages)
    stages[at] = msgspec.structs.replace(stages[at], **fields)
    return msgspec.structs.replace(PLAN, stages=tuple(stages))


def changed_size(at: int, **fields: Any) -> Plan:
    sizes: list[SearchedSize] = list(PLAN.sizes)
    sizes[at] = msgspec.structs.replace(sizes[at], **fields)
    return msgspec.structs.replace(PLAN, sizes=tuple(sizes))


def lie(plan: Plan) -> Plan:
    """The plan predicted anew, with a certificate that its own sizes give."""
    given = PlanProblem(plan, [GIVEN])
    plan = msgspec.structs.replace(plan, prediction=predict_again(given))
    every = [given.degrees_at(size) or given.problem_at(size) for size in plan.sizes]
    own = certificate(given.problem, plan.prediction.step_time, plan.sizes, every)
    return msgspec.structs.replace(plan, certificate=own)


def test_the_plan_itself_passes_and_so_does_a_lie_that_changes_nothing():
    assert [check.name for check in verify(PLAN, GIVEN) if not check.passed] == []
    assert verify(lie(PLAN), GIVEN) == verify(PLAN, GIVEN)
    assert "3 stages x 2 replicas, tensor degrees 2/1/1" in verify(PLAN, GIVEN)[4].detail


def test_a_changed_degree_is_refused():
    two, four = (Group(tensor=t, sequence_parallel=False) for t in (2, 4))
    assert "its ranks are 14 GPUs, and the cluster has 8" in refusal(changed_stage(1, group=four))
    # A degree whose groups still have room is caught by its prediction.
    both = changed_stage(2, group=Group(tensor=2, sequence_parallel=False))
    assert "its ranks are 10 GPUs" in refusal(both)
    fewer = changed_stage(0, group=msgspec.UNSET)
    fewer = msgspec.structs.replace(
        fewer,
        stages=(
            fewer.stages[0],
            PLAN.stages[1],
            msgspec.structs.replace(PLAN.stages[2], group=two),
        ),
    )
    assert refusal(fewer).startswith(("demands: ", "prediction: "))
    with_sequence = changed_stage(0, group=Group(tensor=2, sequence_parallel=True))
    assert "says that" in refusal(with_sequence)
    unknown = changed_stage(0, group=Group(tensor=8, sequence_parallel=False))
    assert refusal(unknown).startswith("orders: ")


def test_ranks_that_the_bound_does_not_cover_are_refused():
    swapped = changed_stage(1, ranks=PLAN.stages[2].ranks)
    stages = list(swapped.stages)
    stages[2] = msgspec.structs.replace(stages[2], ranks=PLAN.stages[1].ranks)
    orders = list(PLAN.orders)
    for one, other in zip(PLAN.stages[1].ranks, PLAN.stages[2].ranks, strict=True):
        orders[one], orders[other] = orders[other], orders[one]
    moved = msgspec.structs.replace(swapped, stages=tuple(stages), orders=tuple(orders))
    assert "the bound covers stages or pipelines side by side" in refusal(moved)


def raised(by: float) -> Certificate:
    bound = PLAN.certificate.lower_bound * by
    return msgspec.structs.replace(PLAN.certificate, lower_bound=bound)


def test_a_raised_bound_is_refused():
    assert refusal(msgspec.structs.replace(PLAN, certificate=raised(1.01))).startswith("bound: ")


def test_a_bound_that_is_raised_at_its_size_too_is_refused():
    """A slower plan of the same space claims to be the best: its own entry says so, and all others."""
    slower = under_gpipe()
    step = predict_again(PlanProblem(slower, [GIVEN])).step_time
    assert step > PLAN.prediction.step_time * 1.01
    sizes = tuple(msgspec.structs.replace(size, lower_bound=step) for size in PLAN.sizes)
    false = lie(msgspec.structs.replace(slower, sizes=sizes))
    assert false.certificate.gap == 0
    assert "is not proven" in refusal(false) or "should need simulating" in refusal(false)


def under_gpipe() -> Plan:
    """The plan under GPipe, which takes longer. Its prediction does not fit yet."""
    orders = orders_by_name("gpipe", stage_ranks(PLAN), PLAN.num_microbatches)
    return msgspec.structs.replace(PLAN, schedule="gpipe", orders=orders)


@pytest.mark.parametrize("by", [-1, 1])
def test_another_number_of_simulated_plans_is_refused(by: int):
    at = [isinstance(size.per_stage, StageDegrees) for size in PLAN.sizes].index(True)
    count = PLAN.sizes[at].simulated
    assert count > 0, "the case proves nothing"
    assert "should need simulating" in refusal(lie(changed_size(at, simulated=count + by)))


def test_degrees_per_stage_that_are_left_out_or_change_are_refused():
    at = [isinstance(size.per_stage, StageDegrees) for size in PLAN.sizes].index(True)
    fewer = StageDegrees(degrees=(1, 2), sequence_parallel=False)
    said = refusal(changed_size(at, per_stage=fewer))
    assert (
        "names, against its demands, microbatches of 1 at tensor degrees per stage among 1, 2"
        in said
    )
    left_out = tuple(size for size in PLAN.sizes if not isinstance(size.per_stage, StageDegrees))
    assert "but says that" in refusal(msgspec.structs.replace(PLAN, sizes=left_out))


def test_a_demand_for_one_degree_is_refused():
    demands = msgspec.structs.replace(PLAN.demands, group=GroupDemand(sequence_parallel=False))
    assert "against its demands" in refusal(msgspec.structs.replace(PLAN, demands=demands))
