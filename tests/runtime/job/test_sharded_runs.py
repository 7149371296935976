"""Plans whose ranks share samples and state train as the plain model, on four processes."""

import itertools
from functools import cache

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.records.rank_group import Reduce, Shard
from autopart.runtime.engine.run_settings import RunKeywords
from autopart.schedules.catalogue import KINDS, make_schedule
from tests.support.long_tests import long_tests
from tests.support.pictures import place_stages
from tests.support.places import MODELS
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import checked, with_policy
from tests.support.sharded_plans import sharing

captured = cache(capture)

LLAMA, GPT2 = "zoo:llama-tiny", "zoo:gpt2-tiny"
DROPOUT = str(MODELS / "dropout.py")
SHAPES: dict[str, tuple[int, tuple[float, ...], int]] = {
    "2 stages x 2": (2, (0.5,), 1),
    "1 stage x 4": (4, (), 1),
    "2 replicas x 2": (2, (), 2),
}
"""Shard degree, cuts and replicas, each for four processes."""


def of_shape(model: str, shape: str, shard: Shard = "zero3", reduce: Reduce = "microbatch") -> Plan:
    data, cuts, replicas = SHAPES[shape]
    plan = plan_for(
        model, captured(model, 1, "float32"), cuts, replicas=replicas, microbatch_size=1
    )
    return sharing(plan, data, shard, reduce=reduce)


def runs() -> list[object]:
    """Every model, shape, state and time of sums. One of them is a slow test, the others long ones.

    `test_grids.py` runs Llama with sums for each microbatch.
    """
    in_ci = [(GPT2, "1 stage x 4", "zero2", "step")]
    return [
        pytest.param(*one, marks=() if one in in_ci else pytest.mark.long)
        for one in itertools.product(
            (LLAMA, GPT2), SHAPES, ("zero2", "zero3"), ("microbatch", "step")
        )
        if (one[0], one[3]) != (LLAMA, "microbatch")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shape", "shard", "reduce"), runs())
def test_shared_state_trains_as_the_plain_model(
    four_ranks: RankPool, model: str, shape: str, shard: Shard, reduce: Reduce
) -> None:
    checked(four_ranks, of_shape(model, shape, shard, reduce))


@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [*long_tests(False), True])
def test_tensor_and_shard_degree_train_together(
    four_ranks: RankPool, sequence_parallel: bool
) -> None:
    plan = plan_for(GPT2, captured(GPT2, 1, "float32"), (), microbatch_size=1)
    checked(four_ranks, sharing(plan, 2, "zero3", tensor=2, sequence_parallel=sequence_parallel))


def schedules() -> list[object]:
    """Every kind of schedule, state and time of sums. One of them is a slow test, the others long ones."""
    kinds = ("gpipe", "zb-h1", "interleaved-1f1b", "zbv", "dualpipev", "bpipe")
    in_ci = [("zbv", "zero3", "microbatch")]
    return [
        pytest.param(*one, marks=() if one in in_ci else pytest.mark.long)
        for one in itertools.product(kinds, ("zero2", "zero3"), ("microbatch", "step"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "shard", "reduce"), schedules())
def test_every_kind_of_schedule_runs_with_shared_state(
    four_ranks: RankPool, schedule: str, shard: Shard, reduce: Reduce
) -> None:
    kind = KINDS[schedule]
    ranks = place_stages(kind, 2, kind.stages_per_rank or 2 if schedule != "gpipe" else 1)
    cuts = [s / len(ranks) for s in range(1, len(ranks))]
    orders = make_schedule(schedule, ranks, 4)
    plan = plan_for(
        GPT2,
        captured(GPT2, 1, "float32"),
        cuts,
        schedule=schedule,
        ranks=ranks,
        orders=orders,
        microbatch_size=1,
    )
    plan = sharing(plan, 2, shard, reduce=reduce)
    if kind.lends:
        cluster = msgspec.structs.replace(plan.cluster, sends_overlap=True, sends="buffered")
        plan = msgspec.structs.replace(plan, cluster=cluster)
    checked(four_ranks, plan)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [*long_tests("selective", "offload"), "recompute"])
def test_activation_policies_run_with_shared_state(four_ranks: RankPool, policy: str) -> None:
    plan = of_shape(LLAMA, "2 stages x 2")
    checked(four_ranks, with_policy(plan, policy))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [*long_tests("recompute"), ""])
def test_each_process_draws_the_plain_model_s_numbers_for_its_samples(
    four_ranks: RankPool, policy: str
) -> None:
    plan = of_shape(DROPOUT, "2 stages x 2")
    if policy:
        stages = tuple(
            msgspec.structs.replace(s, recompute=tuple(n for n in s.layers if n != "loss"))
            for s in plan.stages
        )
        plan = msgspec.structs.replace(plan, stages=stages)
    check = checked(four_ranks, plan)
    assert any("random numbers were seeded alike" in note for note in check.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [*long_tests({"optimizer": "adamw"}, {"sync": "overlap"}), {"clip_norm": 0.1}]
)
def test_options_of_a_run_work_with_shared_state(
    four_ranks: RankPool, options: RunKeywords
) -> None:
    checked(four_ranks, of_shape(LLAMA, "2 replicas x 2"), **options)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [*long_tests("zero2"), "zero3"])
def test_replicas_take_turns_with_a_number_of_microbatches_that_they_do_not_divide(
    four_ranks: RankPool, shard: Shard
) -> None:
    plan = plan_for(
        LLAMA,
        captured(LLAMA, 1, "float32"),
        (),
        replicas=2,
        microbatch_size=1,
        num_microbatches=3,
    )
    checked(four_ranks, sharing(plan, 2, shard))
