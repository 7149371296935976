"""Plans whose stages have tensor degrees of their own train as the plain model, on three and four processes."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest

from autopart.records.plan import Plan, check_plan
from autopart.records.plan_degrees import num_processes
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.job.tensor_ranks import place_in_plan, world_of
from autopart.runtime.update.unequal_ties import UnequalTies
from tests.support.long_tests import long_tests
from tests.support.places import MODELS
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import error_of_groups, run_groups
from tests.support.tensor_plans import ranks_for, with_own_degrees

captured = cache(capture)
LLAMA, GPT2, DROPOUT = "zoo:llama-tiny", "zoo:gpt2-tiny", str(MODELS / "dropout.py")


def plan_of(
    model: str, degrees: Sequence[int], schedule: str = "1f1b", *, splits: bool = True
) -> Plan:
    """A plan of about equal stages, each with one rank."""
    cuts = [s / len(degrees) for s in range(1, len(degrees))]
    own = captured(model, 2, "float32")
    plan = plan_for(model, own, cuts, schedule=schedule, ranks=ranks_for(degrees))
    plan = with_own_degrees(plan, degrees, sequence_parallel=splits)
    check_plan(plan)
    return plan


def check_run(pool: RankPool, plan: Plan, **options: object) -> None:
    """Two steps of a checked run; it raises if anything differs from the plain model."""
    settings = RunSettings(model=plan.origin.model, **{"steps": 2, "check": True, **options})  # type: ignore[arg-type]
    result = pool.call(run_groups, plan, settings)[0]
    assert result is not None and result.check is not None
    assert result.check.losses <= 1e-5 and result.check.gradients <= 1e-5
    assert result.check.num_parameters > 5 and len(result.stages) == len(plan.stages)


def test_the_processes_of_ranks_stand_side_by_side_in_one_world():
    plan = plan_of(LLAMA, (1, 2))
    assert num_processes(plan) == 3
    assert [place_in_plan(plan, process) for process in range(3)] == [(0, 0), (0, 1), (1, 0)]
    assert [world_of(plan, process)[1:] for process in range(3)] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "degrees", "schedule", "splits"),
    [
        pytest.param(GPT2, (2, 1), "1f1b", True, marks=pytest.mark.long),
        pytest.param(LLAMA, (1, 2), "zb-h1", True, marks=pytest.mark.long),
        pytest.param(GPT2, (1, 2), "gpipe", False, marks=pytest.mark.long),
        (GPT2, (1, 2), "zb-h1", True),
        pytest.param(LLAMA, (2, 1), "gpipe", True, marks=pytest.mark.long),
        pytest.param(LLAMA, (1, 2), "1f1b", False, marks=pytest.mark.long),
    ],
)
def test_stages_of_two_degrees_train_as_the_plain_model(
    three_ranks: RankPool, model: str, degrees: tuple[int, ...], schedule: str, *, splits: bool
) -> None:
    """GPT-2's embedding is tied across both stages, so its gradients are summed over both degrees."""
    check_run(three_ranks, plan_of(model, degrees, schedule, splits=splits))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "degrees", "schedule"),
    [
        (LLAMA, (1, 1, 2), "1f1b"),
        pytest.param(GPT2, (1, 2, 1), "1f1b", marks=pytest.mark.long),
        pytest.param(LLAMA, (1, 2, 1), "zb-h1", marks=pytest.mark.long),
        pytest.param(GPT2, (2, 1, 1), "gpipe", marks=pytest.mark.long),
    ],
)
def test_three_stages_of_two_degrees_train_as_the_plain_model(
    four_ranks: RankPool, model: str, degrees: tuple[int, ...], schedule: str
) -> None:
    check_run(four_ranks, plan_of(model, degrees, schedule))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["selective", *long_tests("recompute", "offload")])
def test_policies_and_dropout_run_on_stages_of_two_degrees(
    three_ranks: RankPool, policy: str
) -> None:
    plan = plan_of(DROPOUT, (2, 1))
    stages = tuple(
        msgspec.structs.replace(s, **{policy: tuple(n for n in s.layers if n != "loss")})
        for s in plan.stages
    )
    check_run(three_ranks, msgspec.structs.replace(plan, stages=stages))


@pytest.mark.slow
def test_a_run_continues_to_and_from_stages_of_two_degrees(
    three_ranks: RankPool, tmp_path: Path
) -> None:
    """Degrees change after two of four steps, and the losses are those of four steps."""

    def losses(plan: Plan, steps: int, **folders: str) -> Sequence[float | None]:
        settings = RunSettings(model=GPT2, steps=steps, optimizer="adamw", **folders)
        return three_ranks.call(run_groups, plan, settings)[0].losses

    first, second = plan_of(GPT2, (2, 1)), plan_of(GPT2, (1, 2), splits=False)
    folder = str(tmp_path / "saved")
    whole = losses(first, 4)
    half = losses(first, 2, save=folder)
    assert [*half, *losses(second, 2, load=folder)] == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_the_check_misses_the_sum_of_parameters_tied_across_degrees(three_ranks: RankPool) -> None:
    said = three_ranks.call(run_without_ties, plan_of(GPT2, (2, 1)))[0]
    assert "differs from the plain model" in said


def run_without_ties(process: int, plan: Plan) -> str:
    """The error of a checked run that does not sum over stages with different degrees."""

    def nothing(self: UnequalTies) -> None:
        """Leave each gradient as it is."""

    kept, UnequalTies.run = UnequalTies.run, nothing
    try:
        return error_of_groups(process, plan, RunSettings(model=GPT2, steps=1, check=True))
    finally:
        UnequalTies.run = kept
