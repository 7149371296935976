"""Consistent lies about tensor degrees: each figure agrees with the lie, and `verify` refuses it."""

from typing import Any

import msgspec
import pytest

from autopart.certificate.certificate import certificate
from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.prediction import predict_again
from autopart.certificate.verify import verify
from autopart.records.cluster import Link
from autopart.records.group_choice import GroupDemand
from autopart.records.plan import Plan, SearchedSize
from autopart.search.planner import solve
from tests.support.plan_kinds import ROW
from tests.support.problems import cluster
from tests.support.tensor_profiles import with_degrees

GIVEN = with_degrees(ROW, 2, whole=1)
PLAN = solve(
    GIVEN,
    cluster(1, 2, intra_node=Link(bandwidth=500.0)),
    num_microbatches=2,
    num_stages=1,
    num_replicas=1,
    tensor="auto",
)
"""The degrees 1, 2, and 2 with sequence parallelism; one of the last two is the best."""


def lie(**fields: Any) -> Plan:
    """The plan with other fields, predicted anew, and with a certificate that its own sizes give."""
    changed = msgspec.structs.replace(PLAN, **fields)
    given = PlanProblem(changed, [GIVEN])
    changed = msgspec.structs.replace(changed, prediction=predict_again(given))
    given = PlanProblem(changed, [GIVEN])
    every = [given.problem_at(size) for size in changed.sizes]
    value = changed.prediction.step_time
    own = certificate(given.problem, value, changed.sizes, every)
    return msgspec.structs.replace(changed, certificate=own)


def refusal(plan: Plan) -> str:
    checks = verify(plan, GIVEN)
    assert not checks[-1].passed, plan
    return f"{checks[-1].name}: {checks[-1].detail}"


def sizes_without(*wrong: int) -> tuple[SearchedSize, ...]:
    return tuple(size for at, size in enumerate(PLAN.sizes) if at not in wrong)


def own_place() -> int:
    return [size.group for size in PLAN.sizes].index(PLAN.group)


def test_the_plan_itself_passes_and_so_does_a_lie_that_changes_nothing():
    assert all(check.passed for check in verify(PLAN, GIVEN))
    assert verify(lie(), GIVEN) == verify(PLAN, GIVEN)


def test_a_degree_that_is_left_out_is_refused():
    (other,) = {0, 1, 2} - {0, own_place()}
    assert "leaves out microbatches of 1 at tensor degree" in refusal(
        lie(sizes=sizes_without(other))
    )
    assert "leaves out microbatches of 1 at tensor degree 1" in refusal(lie(sizes=sizes_without(0)))


def test_a_slower_degree_that_claims_its_own_step_as_the_bound_is_refused():
    slow = lie(group=PLAN.sizes[0].group)
    step = slow.prediction.step_time
    assert step > PLAN.prediction.step_time
    sizes = tuple(msgspec.structs.replace(size, lower_bound=step) for size in PLAN.sizes)
    assert refusal(lie(group=PLAN.sizes[0].group, sizes=sizes)).startswith("bound: ")


def test_a_degree_that_claims_to_have_no_plan_is_refused():
    slow = PLAN.sizes[0].group
    step = lie(group=slow).prediction.step_time
    sizes = tuple(
        msgspec.structs.replace(size, lower_bound=None if at else step, simulated=0)
        for at, size in enumerate(PLAN.sizes)
    )
    assert refusal(lie(group=slow, sizes=sizes)).startswith("bound: ")


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        (
            GroupDemand(tensor=2),
            "names, against its demands, microbatches of 1 at tensor degree 1",
        ),
        (GroupDemand(sequence_parallel=True), "names, against its demands"),
        (GroupDemand(tensor=4), "the profile has no tensor degree 4"),
        (msgspec.UNSET, "names, against its demands, microbatches of 1 at tensor degree 2"),
    ],
)
def test_demands_that_allow_other_degrees_than_were_searched_are_refused(demand: Any, message: str):
    demands = msgspec.structs.replace(PLAN.demands, group=demand)
    assert message in refusal(lie(demands=demands))


def test_a_degree_that_was_not_searched_is_refused():
    names = sizes_without(own_place())
    changed = msgspec.structs.replace(PLAN, sizes=names)
    assert "was searched; solve again" in refusal(changed)


def test_a_profile_with_another_variant_is_another_profile():
    other = with_degrees(ROW, 2, whole=2)
    checks = verify(PLAN, other)
    assert (checks[-1].name, checks[-1].passed) == ("profile", False)
