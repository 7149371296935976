"""A run saves its state, and a run under another plan continues with equal losses."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch
from torch.distributed import checkpoint

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings, check_settings
from autopart.runtime.job.launch import run_plan
from autopart.runtime.job.saved_state import check_folder_to_save
from tests.support.long_tests import long_tests
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import error_of_groups, run_groups
from tests.support.sharded_plans import sharing
from tests.support.tensor_plans import in_groups

captured = cache(capture)
LLAMA, GPT2, MOE = "zoo:llama-tiny", "zoo:gpt2-tiny", "zoo:moe-tiny"


def placed(model: str, degree: int, num_stages: int, replicas: int = 1, **of_groups: bool) -> Plan:
    """A plan with AdamW, of equal stages."""
    cuts = [s / num_stages for s in range(1, num_stages)]
    plan = plan_for(model, captured(model, 2, "float32"), cuts, replicas=replicas)
    return plan if degree == 1 else in_groups(plan, degree, **of_groups)


def with_zero1(plan: Plan) -> Plan:
    return msgspec.structs.replace(
        plan, training=msgspec.structs.replace(plan.training, zero1=True)
    )


def losses(pool: RankPool, plan: Plan, steps: int, **folders: str) -> Sequence[float | None]:
    settings = RunSettings(model=plan.origin.model, steps=steps, optimizer="adamw", **folders)
    result = pool.call(run_groups, plan, settings)[0]
    assert result is not None
    return result.losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "before", "after"),
    [pytest.param(GPT2, (1, 2), (2, 1), marks=pytest.mark.long), (LLAMA, (2, 1), (1, 2))],
)
def test_a_run_continues_with_another_tensor_degree(
    two_ranks: RankPool,
    tmp_path: Path,
    model: str,
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    """Degree and stages change after two of four steps, and the losses are those of four steps."""
    folder = str(tmp_path / "saved")
    first, second = placed(model, *before), placed(model, *after)
    whole = losses(two_ranks, first, 4)
    half = losses(two_ranks, first, 2, save=folder)
    rest = losses(two_ranks, second, 2, load=folder)
    assert [*half, *rest] == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("first_shares", [True, *long_tests(False)])
def test_a_run_continues_with_shared_state_and_without(
    two_ranks: RankPool, tmp_path: Path, first_shares: bool
) -> None:
    """One stage on two processes that share state, and two stages on one process each."""
    folder = str(tmp_path / "saved")
    one = plan_for(GPT2, captured(GPT2, 1, "float32"), (), microbatch_size=1)
    plans = [sharing(one, 2, "zero3" if first_shares else "zero2"), placed(GPT2, 1, 2)]
    first, second = plans if first_shares else reversed(plans)
    whole = losses(two_ranks, second, 4)
    half = losses(two_ranks, first, 2, save=folder)
    rest = losses(two_ranks, second, 2, load=folder)
    assert [*half, *rest] == pytest.approx(whole, rel=1e-5)


@pytest.mark.long
def test_a_run_continues_with_twice_the_degree_and_without_replicas(
    four_ranks: RankPool, tmp_path: Path
) -> None:
    """2 replicas x 2 processes with ZeRO-1, then a group of 4, which shares key-value heads."""
    folder = str(tmp_path / "saved")
    first = with_zero1(placed(LLAMA, 2, 1, replicas=2, sequence_parallel=True))
    whole = losses(four_ranks, first, 4)
    half = losses(four_ranks, first, 2, save=folder)
    rest = losses(four_ranks, placed(LLAMA, 4, 1), 2, load=folder)
    assert [*half, *rest] == pytest.approx(whole, rel=1e-5)


@pytest.mark.long
def test_a_run_continues_with_a_context_degree_in_place_of_replicas(
    four_ranks: RankPool, tmp_path: Path
) -> None:
    folder = str(tmp_path / "saved")
    first = with_zero1(placed(GPT2, 2, 1, replicas=2))
    second = in_groups(placed(GPT2, 1, 1), 1, context=4)
    whole = losses(four_ranks, first, 4)
    half = losses(four_ranks, first, 2, save=folder)
    rest = losses(four_ranks, second, 2, load=folder)
    assert [*half, *rest] == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_a_run_continues_without_an_expert_degree(two_ranks: RankPool, tmp_path: Path) -> None:
    """Each process saves whole experts, and the pipeline loads those of its stage."""
    folder = str(tmp_path / "saved")
    first, second = in_groups(placed(MOE, 1, 1), 1, expert=2), placed(MOE, 1, 2)
    whole = losses(two_ranks, second, 4)
    half = losses(two_ranks, first, 2, save=folder)
    rest = losses(two_ranks, second, 2, load=folder)
    assert [*half, *rest] == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_saved_tensors_are_whole_and_have_the_model_s_names(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    folder = str(tmp_path / "saved")
    losses(two_ranks, placed(GPT2, 2, 1), 1, save=folder)
    known = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    width = dict(captured(GPT2, 2, "float32").module.named_parameters())["tokens.weight"].shape
    for key in ("model.tokens.weight", "model.head.weight", "optimizer.tokens.weight.exp_avg"):
        assert known[key].size == width
    step = {"optimizer.step": torch.tensor(0)}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        checkpoint.load(step, checkpoint_id=folder, no_dist=True)
    assert int(step["optimizer.step"]) == 1


@pytest.mark.slow
def test_another_model_or_optimizer_is_refused(two_ranks: RankPool, tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    plan = placed(GPT2, 2, 1)
    settings = RunSettings(model=GPT2, steps=1, optimizer="sgd", save=folder)
    two_ranks.call(run_groups, plan, settings)
    other = RunSettings(model=GPT2, steps=1, optimizer="adamw", load=folder)
    said = two_ranks.call(error_of_groups, plan, other)
    assert all("exp_avg' is missing there; it was saved with another optimizer" in s for s in said)
    llama = RunSettings(model=LLAMA, steps=1, optimizer="sgd", load=folder)
    said = two_ranks.call(error_of_groups, placed(LLAMA, 2, 1), llama)
    assert all("is missing there; give the state of the same model" in one for one in said)
    missing = RunSettings(model=GPT2, steps=1, load=str(tmp_path))
    said = two_ranks.call(error_of_groups, plan, missing)
    assert all("no saved state is there" in one for one in said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"load": "saved", "check": True}, "--check trains the plain model from its first step"),
        ({"save": "saved", "asynchronous": "pipedream"}, "an asynchronous run has several"),
        ({"load": "saved", "optimizer": "adafactor"}, "cannot save or load adafactor's state"),
    ],
)
def test_runs_that_cannot_save_or_load_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_settings(RunSettings(model=GPT2, steps=1, **given))


def test_a_folder_with_files_is_not_saved_into(tmp_path: Path) -> None:
    check_folder_to_save(str(tmp_path))
    check_folder_to_save(str(tmp_path / "new"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something is there; give a new folder"):
        check_folder_to_save(str(tmp_path))


@pytest.mark.slow
def test_a_local_run_saves_for_another_degree(tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    half = run_plan(placed(LLAMA, 2, 1), LLAMA, steps=1, save=folder, timeout=300.0)
    rest = run_plan(placed(LLAMA, 1, 1), LLAMA, steps=1, load=folder, timeout=300.0)
    whole = run_plan(placed(LLAMA, 1, 1), LLAMA, steps=2, timeout=300.0)
    assert half is not None and rest is not None and whole is not None
    assert [*half.losses, *rest.losses] == pytest.approx(whole.losses, rel=1e-5)
