"""A run reports how uneven the loads of expert ranks are, as the plain model's routing says."""

from functools import cache

import pytest

from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.routing import SKEWED, entries_by_hand, fullest_share
from tests.support.runtime.tensor_runs import run_groups
from tests.support.tensor_plans import in_groups

pytestmark = pytest.mark.slow

captured = cache(capture)


def skewed_plan() -> Plan:
    pytest.importorskip("transformers")
    plan = plan_for(SKEWED, captured(SKEWED, 4, "float32"), (), microbatch_size=4)
    return in_groups(plan, 1, expert=2)


def test_a_run_measures_the_imbalance_of_the_plain_models_routing(two_ranks: RankPool) -> None:
    plan = skewed_plan()
    result = two_ranks.call(run_groups, plan, RunSettings(model=SKEWED, steps=1))[0]
    source = load_model(SKEWED)
    model = build_training_model(source, dtype="float32", seed=0).model
    seeds = range(1, 1 + plan.num_microbatches)
    batches = [example_batch(source, 4, dtype="float32", seed=seed) for seed in seeds]
    by_hand = entries_by_hand(model, batches)
    assert [(one.layer, one.expert) for one in result.expert_loads] == [
        (layer, degree) for layer in by_hand for degree in (2, 4)
    ]
    for one in result.expert_loads:
        found = [fullest_share(entries, one.expert) for entries in by_hand[one.layer]]
        assert one.imbalance == pytest.approx(sum(found) / plan.num_microbatches)
        assert one.largest == pytest.approx(max(found))
    # The bias is worth measuring: the fullest rank has much more than its share, and not all.
    assert all(1.2 < one.imbalance < 0.95 * one.expert for one in result.expert_loads)
