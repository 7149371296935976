"""The options of a plan ask its own question: the problem that they make is the plan's."""

import msgspec
import pytest

from autopart.certificate.plan_problem import problem_of
from autopart.search.demands import make_problem
from autopart.search.options_of_plan import options_of
from tests.support.plan_kinds import KINDS, plan_of_kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_make_the_plans_own_problem(kind: str) -> None:
    plan, profiles = plan_of_kind(kind)
    options = options_of(plan)
    assert options.global_batch == plan.num_microbatches * plan.microbatch_size
    assert set(options.microbatch_sizes) == {size.microbatch_size for size in plan.sizes}
    made = make_problem(profiles[0], plan.cluster, plan.num_microbatches, options)
    sized = msgspec.structs.replace(made, microbatch_size=plan.microbatch_size)
    assert sized == problem_of(plan, made.graph)
