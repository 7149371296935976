"""Plans with an expert degree train as the plain model, on four processes."""

from functools import cache

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.long_tests import long_tests
from tests.support.places import MODELS
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import checked, run_without_group_sums, with_policy
from tests.support.tensor_plans import in_groups

pytestmark = pytest.mark.slow

captured = cache(capture)

MOE = "zoo:moe-tiny"
HF_MIXTRAL = str(MODELS / "hf_mixtral.py")
ALL = [MOE, str(MODELS / "hf_qwen3_moe.py"), str(MODELS / "hf_deepseek_v3.py")]
"""`test_grids.py` runs Mixtral in these shapes."""
SHAPES: dict[str, tuple[int, int, tuple[float, ...], int]] = {
    "2 stages x e 2": (1, 2, (0.5,), 1),
    "e 4": (1, 4, (), 1),
    "t 2 x e 2": (2, 2, (), 1),
    "2 replicas x e 2": (1, 2, (), 2),
}
"""Tensor degree, expert degree, cuts and replicas, each for four processes."""
IN_CI = {(MOE, "2 stages x e 2")}


def of_shape(model: str, shape: str, *, splits: bool = False) -> Plan:
    """A plan for four processes whose ranks are groups with an expert degree."""
    if "hf_" in model:
        pytest.importorskip("transformers")
    tensor, expert, cuts, replicas = SHAPES[shape]
    plan = plan_for(
        model, captured(model, 4, "float32"), cuts, replicas=replicas, microbatch_size=4
    )
    return in_groups(plan, tensor, expert=expert, sequence_parallel=splits)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(m, s, marks=() if (m, s) in IN_CI else pytest.mark.long)
        for m in ALL
        for s in SHAPES
    ],
)
def test_expert_groups_train_as_the_plain_model(
    four_ranks: RankPool, model: str, shape: str
) -> None:
    checked(four_ranks, of_shape(model, shape))


@pytest.mark.parametrize("policy", ["recompute", *long_tests("selective", "offload")])
def test_activation_policies_run_on_experts(four_ranks: RankPool, policy: str) -> None:
    """A recomputed layer sends its tokens to their experts again."""
    plan = of_shape(HF_MIXTRAL, "2 stages x e 2")
    checked(four_ranks, with_policy(plan, policy))


@pytest.mark.long
def test_zero1_shares_the_state_of_equal_places(four_ranks: RankPool) -> None:
    plan = of_shape(MOE, "2 replicas x e 2")
    training = msgspec.structs.replace(plan.training, zero1=True, sync="overlap")
    checked(four_ranks, msgspec.structs.replace(plan, training=training))


def test_the_check_misses_the_sums_over_a_group(four_ranks: RankPool) -> None:
    plan = of_shape(MOE, "2 stages x e 2")
    settings = RunSettings(model=MOE, steps=1, check=True)
    said = four_ranks.call(run_without_group_sums, plan, settings)[0]
    assert "differs from the plain model" in said
