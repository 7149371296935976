"""Gradient sums beside the last backward equal the sums at the end."""

from functools import partial
from typing import Any

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run
from tests.support.runtime.overlapped_sums import sums_of_steps, sums_of_varying_steps
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

GPT2 = "zoo:gpt2-tiny"


@pytest.mark.slow
def test_each_gradient_is_sent_with_all_its_parts(two_ranks: RankPool):
    for rank in two_ranks.call(sums_of_steps):
        for step in rank:
            assert step == {
                "twice": [44.0, 44.0],
                "once": [22.0, 22.0],
                "silent": [66.0, 66.0],
                "unused": None,
                "tied": [22.0, 22.0],
            }


@pytest.mark.slow
def test_a_replica_without_microbatches_sends_zeros(two_ranks: RankPool):
    for rank in two_ranks.call(sums_of_steps, 1):
        assert [step["twice"] for step in rank] == [[4.0, 4.0]] * 3
        assert [step["silent"] for step in rank] == [[6.0, 6.0]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("overlaps", [False, True])
def test_each_step_sums_the_gradients_that_any_rank_made(two_ranks: RankPool, *, overlaps: bool):
    for first, second, third in two_ranks.call(partial(sums_of_varying_steps, overlaps=overlaps)):
        assert first == {"a": [11.0, 11.0], "b": None}
        assert second == {"a": [1.0, 1.0], "b": [10.0, 10.0]}
        assert third == {"a": None, "b": [11.0, 11.0]}


def overlapped(plan: Plan, **training: Any) -> Plan:
    """The plan with gradient sums beside the last backward, in buckets of 16 KiB."""
    own = msgspec.structs.replace(plan.training, sync="overlap", bucket_bytes=1 << 14, **training)
    return msgspec.structs.replace(plan, training=own)


def checked(pool: RankPool, plan: Plan, model: str = GPT2) -> RunResult:
    """The result of three checked steps; it raises where anything differs from the plain model."""
    result = pool.call(run, plan, RunSettings(model=model, steps=3, check=True))[0]
    assert result.check is not None and result.check.gradients <= 1e-5
    return result


@pytest.mark.slow
def test_two_replicas_train_as_the_plain_model_and_say_what_was_hidden(two_ranks: RankPool):
    plan = plan_for(GPT2, capture(GPT2), [], replicas=2)
    assert all(r.hidden_sync_time is not None for r in checked(two_ranks, overlapped(plan)).ranks)
    assert all(r.hidden_sync_time is None for r in checked(two_ranks, plan).ranks)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [*long_tests("1f1b"), "zb-h1", *long_tests("gpipe")])
@pytest.mark.parametrize("model", [*long_tests(GPT2), "zoo:encdec-tiny"])
def test_split_backwards_and_tied_weights_train_as_the_plain_model(
    four_ranks: RankPool, schedule: str, model: str
):
    plan = plan_for(model, capture(model), [0.5], replicas=2, schedule=schedule)
    checked(four_ranks, overlapped(plan, zero1=schedule == "gpipe"), model)


@pytest.mark.slow
def test_stages_with_their_own_replicas_train_as_the_plain_model(four_ranks: RankPool):
    ranks = [(0,), (3, 1, 2)]
    plan = plan_for(GPT2, capture(GPT2), [0.4], ranks=ranks, num_microbatches=2)
    checked(four_ranks, overlapped(plan))
