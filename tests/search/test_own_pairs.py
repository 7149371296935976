"""Plans whose overlapped pairs are chosen one by one, and `auto` with pair times."""

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import Plan, schedule_of
from autopart.records.problem import PAIRED
from autopart.schedules.actions import has_pairs
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile

pytestmark = pytest.mark.usefixtures("processor_clock")


def blocks(*, pairs: bool) -> LayerGraph:
    """Eight equal blocks, whose pairs take 2.1 s instead of 3 s."""
    time = 2.1 if pairs else msgspec.UNSET
    return chain_graph(*(layer(f"b{at}", pair_time=time) for at in range(8)))


def solved(schedule: str, *, pairs: bool = True, microbatches: int = 8) -> Plan:
    own = profile(blocks(pairs=pairs))
    return solve(
        own,
        cluster(gpus_per_node=4),
        schedule=schedule,
        num_stages=4,
        num_replicas=1,
        num_microbatches=microbatches,
        time_limit=20.0,
    )


@pytest.mark.slow
def test_auto_is_no_slower_than_any_schedule_with_pairs_and_its_plan_is_verified():
    auto = solved("auto")
    assert set(PAIRED) <= set(auto.demands.schedules)
    assert has_pairs(schedule_of(auto))
    named = solved(",".join(("1f1b", *PAIRED)))
    assert auto.prediction.step_time <= named.prediction.step_time
    assert auto.certificate.lower_bound <= auto.prediction.step_time
    checks = verify(auto, profile(blocks(pairs=True)))
    assert all(check.passed for check in checks), checks


def test_auto_without_pair_times_has_no_pairs():
    plan = solved("auto", pairs=False, microbatches=4)
    assert set(PAIRED).isdisjoint(plan.demands.schedules)
    assert not has_pairs(schedule_of(plan))
