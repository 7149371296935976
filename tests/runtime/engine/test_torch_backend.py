"""Torch's own schedules run the same plans, compared with our loop and the plain model."""

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from autopart.errors import PlanError
from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.runtime.engine.plan_match import check_can_run
from autopart.runtime.engine.run_settings import RunSettings
from autopart.schedules.actions import Action, Schedule
from tests.runtime.engine.test_pipeline import assert_same
from tests.runtime.engine.test_placements import LOOP, PIPEDREAM, V, named, plan
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import complaint_of, run
from tests.support.runtime.orders import valid_orders
from tests.support.runtime.own_loop import Loop, by_both_backends, in_pipeline, plain
from tests.support.runtime.rank_pool import RankPool

TWO = [[0], [1]]
PAIRS = [[0, 1], [2, 3]]
PICKING = "tests/support/models/opaque.py:picking"


def checked(pool: RankPool, of: Plan, steps: int = 2, optimizer: str = "sgd") -> RunResult:
    """The result of a checked run with torch's schedules."""
    asked = RunSettings(
        model=of.origin.model, check=True, steps=steps, backend="torch", optimizer=optimizer
    )
    result = pool.call(run, of, asked)[0]
    assert result.check is not None and result.check.gradients <= result.check.tolerance
    return result


def assert_alike(pool: RankPool, of: Plan) -> None:
    """Losses, gradients and parameters after two steps equal those from our loop."""
    for ours, torchs in pool.call(by_both_backends, of, Loop()):
        assert ours.losses == pytest.approx(torchs.losses, rel=1e-12)
        for mine, theirs in ((ours.gradients, torchs.gradients), (ours.state, torchs.state)):
            assert mine.keys() == theirs.keys()
            for name, tensor in mine.items():
                torch.testing.assert_close(tensor, theirs[name], rtol=1e-11, atol=1e-14)


@pytest.mark.slow
def test_a_named_schedule_of_torch_s_trains_as_our_loop(two_ranks: RankPool):
    of = msgspec.structs.replace(named("1f1b", 2, 4), schedule="1f1b")
    assert_alike(two_ranks, of)
    assert [s.action for s in checked(two_ranks, of).trace[1]] == of.orders[1].split()


@pytest.mark.slow
def test_a_plan_s_own_orders_run_with_split_backwards_and_tied_weights(two_ranks: RankPool):
    """The last stage runs the microbatches in descending order."""
    of = plan("zoo:gpt2-tiny", V, orders=split_backwards_in_v(), num_microbatches=2)
    assert_alike(two_ranks, of)


def split_backwards_in_v() -> Schedule:
    """Two microbatches, the second first, with split backwards."""
    order = ("F", "I", "W")
    outer = [Action(0, "F", 1), Action(0, "F", 0)]
    outer += [Action(3, op, m) for m in (1, 0) for op in order]
    outer += [Action(0, op, m) for m in (1, 0) for op in order[1:]]
    inner = [Action(s, "F", m) for m in (1, 0) for s in (1, 2)]
    inner += [Action(s, op, m) for m in (1, 0) for s in (2, 1) for op in order[1:]]
    return tuple(outer), tuple(inner)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "splits"), [(TWO, False), (TWO, True), (V, False)])
def test_a_value_that_no_stage_used_has_no_gradient(
    two_ranks: RankPool, ranks: list[list[int]], *, splits: bool
):
    """Torch would send zeros, and AdamW would move the weights behind the value."""
    of = plan(PICKING, ranks, num_microbatches=2, split_backward=splits)
    checked(two_ranks, of, steps=3, optimizer="adamw")


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (PIPEDREAM, "these have 2, 1, 1; the nearest plan has 1 on every stage"),
        ([[0, 1], [1, 0]], "rank 0 runs stages of replicas 0 and 1"),
    ],
)
def test_plans_that_torch_cannot_run_are_refused_with_the_reason(ranks: list[list[int]], said: str):
    with pytest.raises(PlanError, match=r"^--backend torch cannot run this plan: ") as raised:
        check_can_run(plan("zoo:mlp-tiny", ranks), "torch")
    assert said in str(raised.value)


def test_offload_is_refused_with_the_layer():
    of = plan("zoo:mlp-tiny", TWO)
    first = msgspec.structs.replace(of.stages[0], offload=of.stages[0].layers[:1])
    of = msgspec.structs.replace(of, stages=(first, *of.stages[1:]))
    with pytest.raises(PlanError, match="stage 0 offloads layer"):
        check_can_run(of, "torch")
    check_can_run(of)


@pytest.mark.slow
def test_a_stage_that_trains_nothing_is_refused(two_ranks: RankPool):
    of = plan("tests/support/models/awkward.py:frozen_start", TWO)
    asked = RunSettings(model=of.origin.model, steps=1, backend="torch")
    assert "nothing up to stage 0 is trained" in two_ranks.call(complaint_of, of, asked)[0]


NAMED = ("gpipe", "1f1b", "looped-bfs", "interleaved-1f1b", "interleaved-zb", "zbv", "dualpipev")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["1f1b", "zbv", *long_tests(*(n for n in NAMED if n not in ("1f1b", "zbv")))]
)
@pytest.mark.parametrize("form", ["torch's class", *long_tests("a file of orders")])
def test_every_schedule_that_torch_has_trains_as_our_loop(
    two_ranks: RankPool, name: str, form: str
):
    of = named(name, 2, 4)
    assert_alike(two_ranks, called(of, name) if form == "torch's class" else of)


def called(of: Plan, name: str) -> Plan:
    return msgspec.structs.replace(of, schedule=name)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMED)
def test_every_schedule_that_torch_has_trains_as_our_loop_on_four_ranks(
    four_ranks: RankPool, name: str
):
    assert_alike(four_ranks, called(named(name, 4, 8), name))


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, *long_tests(4)])
def test_each_replica_has_its_own_schedule(four_ranks: RankPool, count: int):
    """With five microbatches for two replicas, one replica runs three."""
    of = plan("zoo:gpt2-tiny", PAIRS, num_microbatches=count)
    assert_alike(four_ranks, of)
    checked(four_ranks, of)


@pytest.mark.slow
def test_recomputed_layers_are_recomputed_under_torch_s_schedules(two_ranks: RankPool):
    of = plan("zoo:gpt2-tiny", LOOP, split_backward=True)
    stages = tuple(msgspec.structs.replace(s, recompute=s.layers[:2]) for s in of.stages)
    assert_alike(two_ranks, msgspec.structs.replace(of, stages=stages))


@pytest.mark.slow
def test_a_user_s_loop_clips_accumulates_and_scales_with_torch_s_schedules(
    two_ranks: RankPool,
):
    of = plan("zoo:gpt2-tiny", V, split_backward=True)
    loop = Loop(max_norm=0.1, accumulate=2, scale=64.0, backend="torch")
    assert_same(two_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.slow
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(valid_orders(V, 3, split_backward=True))
def test_any_valid_order_trains_as_the_plain_model(two_ranks: RankPool, orders: Schedule):
    of = plan("zoo:mlp-tiny", V, orders=orders, num_microbatches=3)
    assert checked(two_ranks, of, steps=1).check
