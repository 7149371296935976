"""The check for a lower bound, on problems with and without plans."""

import math

import pytest

from autopart.certificate.bound import check_bound
from autopart.errors import PlanError
from autopart.records.problem import Demands, Problem
from tests.support.problems import chain_graph, cluster, layer, problem

CHAIN = chain_graph(*(layer(f"l{i}", param_bytes=100) for i in range(3)))
ONE_STAGE = problem(CHAIN, cluster=cluster(1, 1))
"""Three layers of 3 s on one GPU, four microbatches: 36 s."""

NO_SHAPE = problem(CHAIN, cluster=cluster(1, 1), demands=Demands(num_stages=5))
TOO_LARGE = problem(CHAIN, cluster=cluster(1, 2, memory_bytes=10))


def test_the_step_of_the_only_plan_is_its_bound_and_nothing_above_is():
    check_bound(ONE_STAGE, 36.0, 0)
    check_bound(ONE_STAGE, 0.0, 0)
    for value, simulated in ((36.1, 0), (36.1, 1), (1e300, 10**9), (math.inf, 0), (36.0, 1)):
        with pytest.raises(PlanError):
            check_bound(ONE_STAGE, value, simulated)


@pytest.mark.parametrize("value", [math.nan, -1.0, -math.inf])
def test_a_bound_that_is_no_number_from_0_on_is_refused(value: float):
    with pytest.raises(PlanError, match="no number from 0 on"):
        check_bound(ONE_STAGE, value, 0)


def test_where_the_demands_leave_no_plan_only_no_plan_may_be_claimed():
    check_bound(NO_SHAPE, math.inf, 0)
    for value, simulated in ((36.0, 0), (0.0, 0), (math.inf, 1)):
        with pytest.raises(PlanError, match="microbatches of 1 have no plan, and so no bound"):
            check_bound(NO_SHAPE, value, simulated)


@pytest.mark.parametrize("given", [TOO_LARGE, NO_SHAPE])
def test_no_plan_is_proven_again(given: Problem):
    check_bound(given, math.inf, 0)
    with pytest.raises(PlanError):
        check_bound(ONE_STAGE, math.inf, 0)
