import pytest

from autopart.certificate.plan_problem import own_size
from autopart.errors import PlanError
from autopart.records.mixed_cluster import mixed_cluster
from autopart.records.plan import Plan
from autopart.search.planner import baselines, solve
from autopart.search.plans_beside import SWEEP_SIZES, plans_beside
from tests.support.samples import sample_cluster, sample_plan, sample_profile


@pytest.mark.slow
def test_the_splits_and_the_sweep_are_those_of_their_commands() -> None:
    plan = sample_plan(num_replicas=2)
    found = plans_beside(plan, [sample_profile()], time_limit=20.0)
    assert found.graph == own_size(plan, sample_profile()).profile.graph
    expected = baselines(sample_profile(), plan)
    assert found.baselines.keys() == expected.keys()
    for name, other in expected.items():
        split = found.baselines[name]
        assert isinstance(split, Plan) and isinstance(other, Plan)
        assert split.prediction == other.prediction
    assert found.no_sweep == "" and len(found.sweep) == SWEEP_SIZES + 1
    for point in found.sweep[:-1]:
        assert point.plan is not None
        # Each point is what solving with its memory gives, under the plan's own demands.
        assert len(point.plan.stages) == 2 and len(point.plan.stages[0].ranks) == 2
        assert max(point.plan.prediction.rank_peak_bytes) <= point.memory_bytes
    assert found.sweep[-1].plan is None


@pytest.mark.slow
def test_a_cluster_with_several_kinds_has_no_sweep_and_says_why() -> None:
    cluster = mixed_cluster((("h100-sxm", 1), ("a100-sxm-80gb", 1)), "h100-sxm", "bfloat16")
    plan = solve(sample_profile(), cluster, num_microbatches=4, num_stages=2)
    found = plans_beside(plan, [sample_profile()], time_limit=5.0)
    assert found.sweep == () and "equal GPUs" in found.no_sweep


def test_other_profiles_are_refused() -> None:
    plan = solve(sample_profile(), sample_cluster(), num_microbatches=4)
    with pytest.raises(PlanError):
        plans_beside(plan, [sample_profile(microbatch_size=4)], time_limit=1.0)
