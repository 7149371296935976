"""Ranks lend stash to each other: the run equals the plain model, and the bytes really move."""

from pathlib import Path

import msgspec
import pytest
import torch

from autopart.errors import PlanError, RunError
from autopart.records.plan import Plan
from autopart.runtime.engine.lending import Borrower, StashMoves
from autopart.runtime.engine.plan_match import check_can_run
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.engine.transfers import Transfers
from autopart.runtime.job.launch import run_local
from autopart.schedules.actions import Action
from tests.runtime.engine.test_pipeline import assert_same
from tests.runtime.engine.test_placements import checked
from tests.support.long_tests import long_tests
from tests.support.runtime.lent_stash import (
    bpipe,
    bytes_moved,
    complaint_with_mixed_stash,
    lending_by_hand,
)
from tests.support.runtime.on_ranks import run
from tests.support.runtime.own_loop import Loop, in_pipeline, plain
from tests.support.runtime.rank_pool import RankPool

GPT2, MLP = "zoo:gpt2-tiny", "zoo:mlp-tiny"
STRUCK = "tests/support/models/faulty.py"


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT2, *long_tests("zoo:llama-tiny", "zoo:moe-tiny", MLP)])
def test_four_ranks_agree_to_five_digits_in_float32(four_ranks: RankPool, model: str):
    result = checked(four_ranks, bpipe(model, dtype="float32"))
    assert result.check is not None and result.check.tolerance <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["zoo:unet-tiny", *long_tests("zoo:encdec-tiny", "zoo:resnet-tiny")]
)
def test_skips_and_batch_statistics_train_as_the_plain_model(four_ranks: RankPool, model: str):
    checked(four_ranks, bpipe(model, num_microbatches=4))


@pytest.mark.long
@pytest.mark.parametrize("name", ["hf_t5", "hf_gpt2", "hf_llama", "hf_bert"])
def test_hugging_face_models_lend_stash(two_ranks: RankPool, name: str):
    pytest.importorskip("transformers")
    checked(two_ranks, lending_by_hand(f"tests/support/models/{name}.py"))


@pytest.mark.slow
def test_two_stashes_that_are_away_at_once_come_back_to_their_own_backwards(two_ranks: RankPool):
    checked(two_ranks, lending_by_hand(MLP))


@pytest.mark.slow
def test_the_check_finds_stash_that_comes_back_for_another_microbatch(two_ranks: RankPool):
    settings = RunSettings(model=MLP, check=True, steps=1)
    said, _ = two_ranks.call(complaint_with_mixed_stash, lending_by_hand(MLP), settings)
    assert "the pipeline differs from the plain model" in said


@pytest.mark.slow
def test_replicas_lend_each_their_own_and_share_optimizer_state(four_ranks: RankPool):
    of = lending_by_hand(GPT2, num_replicas=2)
    training = msgspec.structs.replace(of.training, zero1=True, optimizer="adamw", sync="overlap")
    checked(four_ranks, msgspec.structs.replace(of, training=training), steps=3)


@pytest.mark.slow
def test_batches_that_accumulate_and_clipping_are_those_of_the_plain_model(two_ranks: RankPool):
    of, loop = lending_by_hand(GPT2), Loop(max_norm=0.1, accumulate=2)
    assert_same(two_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.long
@pytest.mark.parametrize("how", ["autocast", "compile"])
def test_cast_and_compiled_stages_lend_stash(two_ranks: RankPool, how: str):
    of = lending_by_hand(GPT2, dtype="float32")
    casts = how == "autocast"
    settings = RunSettings(model=GPT2, check=casts, steps=2, autocast=casts, compile=not casts)
    assert two_ranks.call(run, of, settings)[0].losses[1] is not None


@pytest.mark.long
def test_a_saved_run_continues_without_lending_and_back(two_ranks: RankPool, tmp_path: Path):
    lends = lending_by_hand(GPT2)
    orders = tuple(
        " ".join(w for w in o.split() if "L" not in w and "T" not in w) for o in lends.orders
    )
    stays = msgspec.structs.replace(lends, orders=orders, schedule="1f1b")

    def losses(
        of: Plan, steps: int, load: str | None = None, save: str | None = None
    ) -> list[float]:
        settings = RunSettings(model=GPT2, steps=steps, optimizer="adamw", load=load, save=save)
        return two_ranks.call(run, of, settings)[0].losses

    whole = losses(lends, 3)
    first = losses(stays, 1, save=str(tmp_path / "1"))
    second = losses(lends, 1, load=str(tmp_path / "1"), save=str(tmp_path / "2"))
    third = losses(stays, 1, load=str(tmp_path / "2"))
    assert [*first, *second, *third] == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_each_stash_moves_with_all_its_bytes_once_in_a_step(four_ranks: RankPool):
    of = bpipe(MLP)
    moved = four_ranks.call(bytes_moved, of, RunSettings(model=MLP, steps=1))
    gone, come = moved[0][0], moved[3][1]
    assert len(gone) == of.orders[0].count("L") > 1
    assert gone == come and len(set(gone)) == 1 and gone[0] > 0
    assert moved[1] == moved[2] == ([], []) and not moved[0][1] and not moved[3][0]


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["killed", *long_tests("raising")])
def test_a_rank_that_dies_ends_the_run_in_one_line(fate: str):
    """Rank 1 keeps stash of rank 0 when it dies."""
    model = f"{STRUCK}:{fate}"
    with pytest.raises(RunError) as raised:
        run_local(
            lending_by_hand(model, dtype="float32"), RunSettings(model=model, steps=3, timeout=60.0)
        )
    said = {
        "killed": "rank 1 was killed by SIGKILL on 1F2",
        "raising": "rank 1 raised ValueError on 1F2: no room left on the device",
    }
    assert str(raised.value) == said[fate]


def test_torch_s_schedules_refuse_to_move_stash():
    with pytest.raises(PlanError, match="ranks lend stash to each other under bpipe"):
        check_can_run(lending_by_hand(MLP), "torch")


def _kept(moves: str, sizes: tuple[int, ...], failing: bool = False) -> Borrower:
    """A borrower whose lender announces stashes of some sizes, in turn."""
    announced = [number for size in sizes for number in (1, size)]
    there = iter(announced)

    def send(tensor: torch.Tensor, other_rank: int) -> None:
        pass

    def receive(tensor: torch.Tensor, other_rank: int) -> None:
        if failing:
            raise RuntimeError("connection closed by peer")
        if tensor.dtype == torch.int64:
            tensor.fill_(next(there))

    actions = [Action(0, word[0], int(word[1:])) for word in moves.split()]  # type: ignore[arg-type]
    transfers = Transfers(send, receive)
    return Borrower(0, actions, transfers, torch.device("cpu"))


def one_step(borrower: Borrower) -> None:
    borrower.begin()
    borrower.end()


def test_a_rank_has_as_many_places_as_its_lender_fills_and_keeps_them():
    borrower = _kept("L1 L2 T1 L3 T2 T3", (64,) * 6)
    one_step(borrower)
    assert [place.nbytes for place in borrower.places] == [64, 64]
    there = {place.data_ptr() for place in borrower.places}
    one_step(borrower)
    assert {place.data_ptr() for place in borrower.places} == there


def test_a_stash_of_another_size_gets_a_place_of_its_own_instead():
    borrower = _kept("L1 T1 L2 T2", (64, 32))
    one_step(borrower)
    assert [place.nbytes for place in borrower.places] == [32]


def test_a_lender_that_is_gone_is_named_on_the_rank_s_own_thread():
    moves = StashMoves(borrower=_kept("L1 T1", (), failing=True))
    moves.begin()
    with pytest.raises(RunError, match="0L1: connection closed by peer"):
        moves.end()
    with pytest.raises(RunError, match="0L1"):
        moves.due()


def test_a_rank_without_moves_waits_for_nothing():
    moves = StashMoves()
    moves.begin()
    moves.end()
    assert moves.due() is None and moves.under_way is None and not moves.places
