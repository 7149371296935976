"""Plans with a tensor degree train as the plain model, on four processes."""

from functools import cache

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.records.plan_degrees import num_processes
from autopart.records.run_result import CheckResult
from autopart.runtime.engine.run_settings import RunKeywords, RunSettings
from autopart.runtime.job.launch import run_plan
from autopart.schedules.catalogue import KINDS, make_schedule
from tests.support.long_tests import long_tests
from tests.support.pictures import place_stages
from tests.support.places import MODELS
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import run_groups, run_without_group_sums, with_policy
from tests.support.tensor_plans import in_groups

captured = cache(capture)

LLAMA = "zoo:llama-tiny"
HF_GPT2 = str(MODELS / "hf_gpt2.py")
DROPOUT = str(MODELS / "dropout.py")
ALL = [
    "zoo:gpt2-tiny",
    "zoo:moe-tiny",
    str(MODELS / "hf_llama.py"),
    HF_GPT2,
]
SHAPES: dict[str, tuple[int, tuple[float, ...], int]] = {
    "2 stages x 2": (2, (0.5,), 1),
    "1 stage x 4": (4, (), 1),
    "2 replicas x 2": (2, (), 2),
}
"""Tensor degree, cuts and replicas, each for four processes."""


def of_shape(model: str, shape: str) -> Plan:
    """A plan for four processes whose ranks are not yet tensor groups."""
    if "hf_" in model:
        pytest.importorskip("transformers")
    _, cuts, replicas = SHAPES[shape]
    return plan_for(model, captured(model, 2, "float32"), cuts, replicas=replicas)


def checked(pool: RankPool, plan: Plan, degree: int, *, sequence_parallel: bool) -> CheckResult:
    """The check after two steps; it raises if anything differs from the plain model."""
    plan = in_groups(plan, degree, sequence_parallel=sequence_parallel)
    settings = RunSettings(model=plan.origin.model, steps=2, check=True)
    result = pool.call(run_groups, plan, settings)[0]
    assert result is not None and result.check is not None
    return result.check


def runs() -> list[object]:
    """Every model, shape and word on sequence parallelism. One of them is a slow test, the others long ones.

    `test_grids.py` runs Llama in these shapes.
    """
    in_ci = [(HF_GPT2, "2 stages x 2", True)]
    return [
        pytest.param(
            model,
            shape,
            splits,
            marks=() if (model, shape, splits) in in_ci else pytest.mark.long,
        )
        for model in ALL
        for shape in SHAPES
        for splits in (False, True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shape", "sequence_parallel"), runs())
def test_tensor_groups_train_as_the_plain_model(
    four_ranks: RankPool, model: str, shape: str, sequence_parallel: bool
) -> None:
    plan = of_shape(model, shape)
    check = checked(four_ranks, plan, SHAPES[shape][0], sequence_parallel=sequence_parallel)
    assert check.losses <= 1e-5 and check.gradients <= 1e-5 and check.num_parameters > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [*long_tests("gpipe", "zb-h1", "zb-h2", "interleaved-1f1b"), "zbv"]
)
def test_every_kind_of_schedule_runs_on_tensor_groups(four_ranks: RankPool, schedule: str) -> None:
    kind = KINDS[schedule]
    ranks = place_stages(kind, 2, kind.stages_per_rank or 2)
    cuts = [s / len(ranks) for s in range(1, len(ranks))]
    orders = make_schedule(schedule, ranks, 4)
    plan = plan_for(
        LLAMA,
        captured(LLAMA, 2, "float32"),
        cuts,
        schedule=schedule,
        ranks=ranks,
        orders=orders,
    )
    check = checked(four_ranks, plan, 2, sequence_parallel=True)
    assert check.gradients <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("policy", [*long_tests("recompute", "offload"), "selective"])
def test_activation_policies_run_on_shards(four_ranks: RankPool, policy: str) -> None:
    plan = with_policy(of_shape(LLAMA, "2 stages x 2"), policy)
    assert checked(four_ranks, plan, 2, sequence_parallel=True).gradients <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [*long_tests(False), True])
def test_dropout_on_shards_draws_the_plain_model_s_numbers(
    two_ranks: RankPool, sequence_parallel: bool
) -> None:
    plan = plan_for(DROPOUT, captured(DROPOUT, 2, "float32"), ())
    check = checked(two_ranks, plan, 2, sequence_parallel=sequence_parallel)
    assert check.losses <= 1e-5 and check.gradients <= 1e-5
    # 1 + 4 * 4 dropouts, 4 microbatches, 2 steps.
    drawn = "random numbers were seeded alike in both models (bernoulli_ 136 times)"
    assert drawn in check.notes


@pytest.mark.slow
@pytest.mark.parametrize("policy", [*long_tests("recompute"), "selective"])
def test_recomputed_dropout_on_shards_draws_its_numbers_again(
    four_ranks: RankPool, policy: str
) -> None:
    plan = with_policy(of_shape(DROPOUT, "2 stages x 2"), policy)
    assert checked(four_ranks, plan, 2, sequence_parallel=True).gradients <= 1e-5


@pytest.mark.slow
def test_zero1_shards_the_state_of_equal_places_beside_the_last_backward(
    four_ranks: RankPool,
) -> None:
    plan = of_shape(LLAMA, "2 replicas x 2")
    training = msgspec.structs.replace(plan.training, zero1=True, sync="overlap")
    plan = msgspec.structs.replace(plan, training=training)
    assert checked(four_ranks, plan, 2, sequence_parallel=True).gradients <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"backend": "torch"}, *long_tests({"autocast": True})])
def test_torchs_schedules_and_autocast_run_on_shards(
    four_ranks: RankPool, options: RunKeywords
) -> None:
    plan = in_groups(of_shape(LLAMA, "2 stages x 2"), 2, sequence_parallel=True)
    settings = RunSettings(model=LLAMA, **{"steps": 1, "check": True, **options})
    result = four_ranks.call(run_groups, plan, settings)[0]
    assert result.check.num_parameters > 5


@pytest.mark.slow
def test_the_check_misses_the_sums_over_a_group(four_ranks: RankPool) -> None:
    plan = in_groups(of_shape(LLAMA, "2 stages x 2"), 2, sequence_parallel=True)
    settings = RunSettings(model=LLAMA, steps=1, check=True)
    said = four_ranks.call(run_without_group_sums, plan, settings)[0]
    assert "differs from the plain model" in said and "norm" in said
    assert "a tensor group adds in another order" in said


@pytest.mark.long  # a command of README does the same, and its test is a slow one
def test_a_local_run_starts_one_process_per_gpu() -> None:
    plan = in_groups(of_shape(LLAMA, "2 stages x 2"), 2)
    assert num_processes(plan) == 4
    result = run_plan(plan, LLAMA, steps=1, check=True, timeout=300.0)
    assert result is not None and result.check is not None
    assert result.num_ranks == 2 and len(result.stages) == 2
