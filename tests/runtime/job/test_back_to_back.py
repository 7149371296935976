"""Plans that minimise the period run back to back, and clipping by the norm of all gradients."""

import math
import time
from functools import cache
from pathlib import Path
from unittest import mock

import msgspec
import pytest
from torch import distributed

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.runtime.engine.executor import Executor
from autopart.runtime.engine.run_settings import RunSettings, check_clipping, runs_back_to_back
from autopart.runtime.job.training import BACK_TO_BACK
from autopart.runtime.update.optimizer import Optimizer
from tests.runtime.engine.test_both_ways import both_ways
from tests.support.runtime.on_ranks import run
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

captured = cache(capture)
GPT2, MLP, LLAMA = "zoo:gpt2-tiny", "zoo:mlp-tiny", "zoo:llama-tiny"


def plan(model: str, replicas: int = 1, schedule: str = "1f1b") -> Plan:
    """A plan for two ranks: two stages, or two replicas of one."""
    cuts = [0.5] if replicas == 1 else []
    return plan_for(model, captured(model), cuts, replicas=replicas, schedule=schedule)


def for_period(of: Plan, **training: object) -> Plan:
    """The plan as one that minimises the period."""
    prediction = msgspec.structs.replace(of.prediction, period=of.prediction.step_time / 2)
    own = msgspec.structs.replace(of.training, **training)
    return msgspec.structs.replace(of, objective="period", prediction=prediction, training=own)


def checked(pool: RankPool, of: Plan, **options: object) -> RunResult:
    """Three checked steps; the check raises if anything differs from the plain model."""
    settings = RunSettings(model=of.origin.model, steps=3, check=True, **options)  # pyright: ignore
    result = pool.call(run, of, settings)[0]
    assert result.check is not None and result.check.gradients <= result.check.tolerance
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "schedule"),
    [
        (GPT2, "zb-h1"),
        pytest.param(MLP, "1f1b", marks=pytest.mark.long),
        pytest.param(LLAMA, "zb-h2", marks=pytest.mark.long),
    ],
)
def test_steps_back_to_back_train_as_the_plain_model(
    two_ranks: RankPool, model: str, schedule: str
):
    of = for_period(plan(model, schedule=schedule))
    result = checked(two_ranks, of)
    assert BACK_TO_BACK in result.notes
    assert result.predicted_step_time == of.prediction.period
    # One step after the other, the same plan is compared with its step.
    alone = checked(two_ranks, msgspec.structs.replace(of, objective="step"))
    assert BACK_TO_BACK not in alone.notes
    assert alone.predicted_step_time == of.prediction.step_time
    assert alone.losses == pytest.approx(result.losses, rel=1e-6)


@pytest.mark.slow
def test_replicas_with_shared_optimizer_state_train_back_to_back(two_ranks: RankPool):
    checked(two_ranks, for_period(plan(GPT2, replicas=2), zero1=True), optimizer="adamw")


def run_and_count(rank: int, of: Plan, settings: RunSettings) -> int:
    """How often a run waits for all ranks."""
    with mock.patch.object(distributed, "barrier", wraps=distributed.barrier) as barrier:
        run(rank, of, settings)
    return barrier.call_count


@pytest.mark.slow
def test_no_barrier_stands_between_steps_back_to_back(two_ranks: RankPool):
    """More steps bring no more barriers; one after the other, each brings some."""
    for of, more in ((for_period(plan(MLP)), 0), (plan(MLP), 3)):
        few, many = (
            two_ranks.call(run_and_count, of, RunSettings(model=MLP, steps=steps))[0]
            for steps in (1, 4)
        )
        assert (many - few > 0) == bool(more)
        assert many - few >= more


def run_ahead(rank: int, of: Plan, settings: RunSettings, flag: str) -> RunResult | None:
    """A run whose rank 1 makes its first update only once rank 0 is in its second step."""
    updates, stepped, ran = [0], Optimizer.step, Executor.step

    def update(self: Optimizer) -> None:
        until = time.monotonic() + 400.0
        while rank == 1 and not Path(flag).exists():
            assert time.monotonic() < until, "rank 0 waited for rank 1's update"
            time.sleep(0.01)
        stepped(self)
        updates[0] += 1

    def step(self: Executor, *given: object, **how: object) -> object:
        if rank == 0 and updates[0] == 1:
            Path(flag).touch()
        return ran(self, *given, **how)  # pyright: ignore

    with mock.patch.object(Optimizer, "step", update), mock.patch.object(Executor, "step", step):
        return run(rank, of, settings)


@pytest.mark.slow
def test_a_rank_starts_its_next_step_before_another_rank_has_updated(
    two_ranks: RankPool, tmp_path: Path
):
    flag = str(tmp_path / "rank 0 is in step 2")
    of = for_period(plan(MLP))
    result = two_ranks.call(run_ahead, of, RunSettings(model=MLP, steps=2, timeout=500.0), flag)[0]
    assert result is not None and len(result.losses) == 2


@pytest.mark.slow
@pytest.mark.parametrize("zero1", [pytest.param(False, marks=pytest.mark.long), True])
def test_clipped_steps_train_as_the_plain_model(two_ranks: RankPool, zero1: bool):
    """The norm of all stages and both copies counts, and it is far above the limit."""
    of = both_ways(GPT2, [range(2)], dtype="float32", zero1=zero1)
    free = checked(two_ranks, of, lr=0.5)
    clipped = checked(two_ranks, of, lr=0.5, clip_norm=0.05)
    assert clipped.losses[0] == pytest.approx(free.losses[0], rel=1e-6)
    assert clipped.losses[1] != pytest.approx(free.losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "options", "reason"),
    [
        ("period", {"clip_norm": 1.0}, "its steps would not run back to back"),
        ("step", {"clip_norm": 1.0, "asynchronous": "pipedream"}, "at the same update"),
        ("step", {"clip_norm": 0.0}, "give a number above 0"),
        ("step", {"clip_norm": math.nan}, "give a number above 0"),
        ("step", {"clip_norm": math.inf}, "give a number above 0"),
    ],
)
def test_clipping_is_refused_where_ranks_may_not_wait_for_all_gradients(
    objective: str, options: dict[str, object], reason: str
):
    of = msgspec.structs.replace(plan(MLP), objective=objective)
    with pytest.raises(UsageError, match=reason):
        check_clipping(of, RunSettings(model=MLP, steps=1, **options))  # pyright: ignore


def test_runs_that_compare_single_steps_go_one_by_one():
    of = for_period(plan(MLP))
    assert runs_back_to_back(of, RunSettings(model=MLP, steps=2))
    assert not runs_back_to_back(of, RunSettings(model=MLP, steps=2, count_bytes=True))
    assert not runs_back_to_back(of, RunSettings(model=MLP, steps=2, asynchronous="pipedream"))
