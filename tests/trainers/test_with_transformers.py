"""A GPT-2 that Hugging Face's trainer trains under a plan has the losses of the plain trainer."""

from pathlib import Path

import pytest
import torch

from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.trainers import (
    Log,
    Tokens,
    last_checkpoint,
    plain_trainer,
    plan_of,
    planned_trainer,
    trainer_complaints,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Log, Path]:
    """The plain trainer's log, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("plain")
    return plain_trainer(folder), folder


def equal(found: Log, expected: Log) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5), (one, other)


def test_losses_norms_rates_and_evaluations_are_those_of_the_plain_trainer(
    two_ranks: RankPool, plain: tuple[Log, Path], tmp_path: Path
) -> None:
    log, _ = plain
    assert sum("loss" in line for line in log) == 4
    assert sum("eval_loss" in line for line in log) == 2
    of_ranks = two_ranks.call(planned_trainer, plan_of(), tmp_path)
    equal(of_ranks[0], log)
    # The checkpoint is the plain trainer's: the same files, tensors and states of the optimizer.
    mine, theirs = tmp_path / "checkpoint-2", plain[1] / "checkpoint-2"
    names = {path.name for path in theirs.iterdir()} - {"rng_state.pth"}
    assert names <= {path.name for path in mine.iterdir()}
    for name in ("optimizer.pt", "scheduler.pt"):
        found, expected = (torch.load(at / name) for at in (mine, theirs))
        assert found.keys() == expected.keys()
    found, expected = (torch.load(at / "optimizer.pt")["state"] for at in (mine, theirs))
    assert found.keys() == expected.keys()
    for number in expected:
        torch.testing.assert_close(found[number], expected[number], rtol=1e-4, atol=1e-7)
    # It continues without a plan, and under another one.
    whole = plain_trainer(tmp_path / "plain", mine)
    equal(whole[-4:], log[-4:])
    again = two_ranks.call(planned_trainer, plan_of(0.7), tmp_path / "again", mine)
    equal(again[0], log)


def test_each_rank_can_look_for_a_checkpoint(two_ranks: RankPool, tmp_path: Path) -> None:
    """Rank 1 looked into a folder that rank 0 had not made yet."""
    assert two_ranks.call(last_checkpoint, plan_of(), tmp_path) == [None, None]


def test_a_plan_continues_from_a_checkpoint_of_the_plain_trainer(
    two_ranks: RankPool, plain: tuple[Log, Path], tmp_path: Path
) -> None:
    log, folder = plain
    changes = {"load_best_model_at_end": True}
    found = two_ranks.call(planned_trainer, plan_of(), tmp_path, folder / "checkpoint-2", changes)
    equal(found[0], log)


REFUSED = [
    ({"fp16": True}, "fp16 cannot be set under a plan: fp16 needs a loss scaler; take bf16"),
    ({"per_device_train_batch_size": 4}, "set per_device_train_batch_size=8 in place of 4"),
    ({":train_dataset": Tokens(63)}, "63 samples do not divide into batches of 8"),
    ({":compute_metrics": len}, "compute_metrics cannot be given with a plan: logits"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor cannot be set under a plan"),
    ({":eval_dataset": Tokens(8), "per_device_eval_batch_size": 9}, "per_device_eval_batch_size=8"),
]  # fmt: skip


def test_what_a_plan_cannot_follow_is_refused_in_one_line(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    said = two_ranks.call(trainer_complaints, plan_of(), tmp_path, [case for case, _ in REFUSED])
    for of_rank in said:
        for told, (_, expected) in zip(of_rank, REFUSED, strict=True):
            assert told.startswith("UsageError: ") and expected in told and "\n" not in told
