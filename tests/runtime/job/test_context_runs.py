"""Plans with a context degree train as the plain model, on four processes."""

from functools import cache

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.records.rank_group import Reduce, Shard
from autopart.runtime.engine.run_settings import RunSettings
from autopart.schedules.catalogue import KINDS, make_schedule
from tests.support.long_tests import long_tests
from tests.support.pictures import place_stages
from tests.support.places import MODELS
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import checked, run_without_group_sums, with_policy
from tests.support.sharded_plans import sharing
from tests.support.tensor_plans import in_groups

pytestmark = pytest.mark.slow

captured = cache(capture)

GPT2, LLAMA = "zoo:gpt2-tiny", "zoo:llama-tiny"
DROPOUT = str(MODELS / "dropout.py")
ALL = [GPT2, "zoo:moe-tiny", str(MODELS / "hf_llama.py")]
"""`test_grids.py` runs Llama and Mixtral in these shapes."""
SHAPES: dict[str, tuple[int, int, tuple[float, ...], int]] = {
    "2 stages x c 2": (1, 2, (0.5,), 1),
    "c 4": (1, 4, (), 1),
    "t 2 x c 2": (2, 2, (), 1),
    "2 replicas x c 2": (1, 2, (), 2),
}
"""Tensor degree, context degree, cuts and replicas, each for four processes."""
IN_CI = {(GPT2, "2 stages x c 2")}


def of_shape(model: str, shape: str, *, splits: bool = False, ring: bool = False) -> Plan:
    """A plan for four processes whose ranks are groups with a context degree."""
    if "hf_" in model:
        pytest.importorskip("transformers")
    tensor, context, cuts, replicas = SHAPES[shape]
    plan = plan_for(model, captured(model, 2, "float32"), cuts, replicas=replicas)
    return in_groups(plan, tensor, context=context, sequence_parallel=splits, ring=ring)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(m, s, marks=() if (m, s) in IN_CI else pytest.mark.long)
        for m in ALL
        for s in SHAPES
    ],
)
def test_context_groups_train_as_the_plain_model(
    four_ranks: RankPool, model: str, shape: str
) -> None:
    checked(four_ranks, of_shape(model, shape, splits=shape.startswith("t 2")))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LLAMA, "c 4"),
        *(
            pytest.param(m, s, marks=pytest.mark.long)
            for m in (GPT2, LLAMA, "zoo:moe-tiny", "zoo:encdec-tiny")
            for s in SHAPES
            if (m, s) != (LLAMA, "c 4")
        ),
    ],
)
def test_rings_train_as_the_plain_model(four_ranks: RankPool, model: str, shape: str) -> None:
    checked(four_ranks, of_shape(model, shape, splits=shape.startswith("t 2"), ring=True))


@pytest.mark.long
@pytest.mark.parametrize("policy", ["recompute", "selective", "offload"])
def test_activation_policies_run_beside_rings(four_ranks: RankPool, policy: str) -> None:
    """A recomputed layer turns its ring once more."""
    checked(four_ranks, with_policy(of_shape(GPT2, "2 stages x c 2", ring=True), policy))


@pytest.mark.parametrize("schedule", ["zbv", *long_tests("gpipe", "zb-h1", "interleaved-1f1b")])
def test_schedules_run_in_context_groups(four_ranks: RankPool, schedule: str) -> None:
    """A split backward defers weight gradients, which are partial until the end of the step."""
    kind = KINDS[schedule]
    ranks = place_stages(kind, 2, kind.stages_per_rank or 2)
    cuts = [s / len(ranks) for s in range(1, len(ranks))]
    orders = make_schedule(schedule, ranks, 4)
    model = captured(GPT2, 2, "float32")
    plan = plan_for(GPT2, model, cuts, schedule=schedule, ranks=ranks, orders=orders)
    checked(four_ranks, in_groups(plan, 1, context=2))


@pytest.mark.parametrize("policy", ["recompute", *long_tests("selective", "offload")])
def test_activation_policies_run_on_positions(four_ranks: RankPool, policy: str) -> None:
    """A recomputed layer gathers its keys and values again."""
    checked(four_ranks, with_policy(of_shape(GPT2, "2 stages x c 2"), policy))


@pytest.mark.parametrize("sync", ["overlap", *long_tests("end")])
def test_zero1_shares_the_state_of_equal_places(four_ranks: RankPool, sync: str) -> None:
    plan = of_shape(GPT2, "2 replicas x c 2")
    training = msgspec.structs.replace(plan.training, zero1=True, sync=sync)
    checked(four_ranks, msgspec.structs.replace(plan, training=training))


@pytest.mark.parametrize(
    ("model", "shard", "reduce"),
    [
        (GPT2, "zero3", "microbatch"),
        pytest.param(GPT2, "zero2", "step", marks=pytest.mark.long),
        pytest.param("zoo:mlp-tiny", "zero3", "step", marks=pytest.mark.long),
    ],
)
def test_context_and_shard_degree_train_together(
    four_ranks: RankPool, model: str, shard: Shard, reduce: Reduce
) -> None:
    """The loss counts the targets of all samples and positions."""
    plan = plan_for(model, captured(model, 1, "float32"), (), microbatch_size=1)
    checked(four_ranks, sharing(plan, 2, shard, reduce=reduce, context=2))


@pytest.mark.parametrize("shape", ["t 2 x c 2", *long_tests("2 stages x c 2", "c 4")])
def test_dropout_on_positions_draws_the_plain_model_s_numbers(
    four_ranks: RankPool, shape: str
) -> None:
    check = checked(four_ranks, of_shape(DROPOUT, shape, splits=shape.startswith("t 2")))
    assert any("random numbers were seeded alike" in note for note in check.notes)


def test_the_check_misses_the_sums_over_a_group(four_ranks: RankPool) -> None:
    plan = of_shape(GPT2, "2 stages x c 2")
    settings = RunSettings(model=GPT2, steps=1, check=True)
    said = four_ranks.call(run_without_group_sums, plan, settings)[0]
    assert "differs from the plain model" in said
