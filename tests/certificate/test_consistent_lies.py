"""Bad plans, honestly recomputed, with their own value as the bound: refused unless true."""

import random
import time
from collections import Counter

import pytest

from autopart.activations.demands import checked_policies
from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.verify import verify
from autopart.errors import AutopartError
from autopart.records.demands import check_demands
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.microbatch_sizes import search_sizes, value_of
from tests.support.lies import BROKEN, bad_plan, claiming, lies
from tests.support.seeds import seeds


def is_true(plan: Plan, given: Profile) -> bool:
    """Whether a search finds some plan for the problem, and none below the plan's bounds."""
    asked, batch = PlanProblem(plan, [given]), plan.num_microbatches * plan.microbatch_size
    if any(batch % size.microbatch_size for size in plan.sizes):
        return False
    try:
        check_demands(plan.demands, plan.objective, given.graph)
        checked_policies(given.graph, plan.cluster, plan.demands)
        problems = [asked.problem_at(size) for size in plan.sizes]
        found = search_sizes(problems, "auto", time.perf_counter() + 60)
    except AutopartError:
        return False
    values = [value_of(*pair) for pair in zip(problems, found.outcomes, strict=True)]
    return found.best is not None and min(values) >= plan.certificate.lower_bound * (1 - 1e-9)


def accepted(plan: Plan, given: Profile) -> bool:
    return all(check.passed for check in verify(plan, given))


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(4, 200, slow=7))
def test_a_bad_plan_is_refused_behind_everything_that_could_hide_it(seed: int):
    for name, plan, given in lies(random.Random(seed)):
        assert not accepted(plan, given) or is_true(plan, given), name


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_a_plan_that_breaks_a_demand_is_refused_even_where_its_bound_claims_nothing(seed: int):
    for name, plan, given in lies(random.Random(seed), bound=0.0):
        assert name not in BROKEN or not accepted(plan, given), name


@pytest.mark.slow
def test_a_plan_that_claims_nothing_and_keeps_its_demands_passes():
    kept = {
        name
        for seed in range(3)
        for name, plan, given in lies(random.Random(seed), bound=0.0)
        if accepted(plan, given)
    }
    assert kept >= {"its schedule", "stages", "pins on every layer", "stages that stay together"}


@pytest.mark.slow
def test_most_lies_are_lies_and_some_claims_are_true():
    counts = Counter(
        (accepted(plan, given), is_true(plan, given))
        for seed in range(2)
        for _, plan, given in lies(random.Random(seed))
    )
    assert counts[True, False] == 0
    assert counts[False, False] > 50 and counts[True, True] > 2


@pytest.mark.parametrize("seed", seeds(6, 60))
def test_an_honest_bound_below_a_bad_plan_passes_and_one_slightly_higher_does_not(seed: int):
    """The bound is that of a search. The bad plan then has a gap, and may say so."""
    plan, given = bad_plan(random.Random(seed))
    asked = PlanProblem(plan, [given])
    found = search_sizes([asked.problem], "auto", time.perf_counter() + 60)
    best, bound = found.outcomes[0].best, found.outcomes[0].lower_bound
    assert best is not None
    step = best.prediction.step_time
    if claiming(plan, given).prediction.step_time <= step * (1 + 1e-6):
        return
    proven = claiming(plan, given, found.outcomes[0].simulated, bound)
    assert accepted(proven, given), verify(proven, given)[-1]
    for simulated in (0, found.outcomes[0].simulated, 10**6):
        assert not accepted(claiming(plan, given, simulated, step * (1 + 1e-6)), given)
