"""Two pipelines over the same ranks in opposite directions train as the plain model."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from autopart.errors import PlanError
from autopart.records.plan import Plan
from autopart.runtime.engine.plan_match import check_can_run
from autopart.runtime.engine.run_settings import RunSettings
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.placements import mirrored
from tests.runtime.engine.test_pipeline import assert_same
from tests.runtime.engine.test_placements import checked, plan
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run, run_without_sums
from tests.support.runtime.own_loop import Loop, in_pipeline, plain
from tests.support.runtime.rank_pool import RankPool

GPT2, LLAMA, ENCDEC = "zoo:gpt2-tiny", "zoo:llama-tiny", "zoo:encdec-tiny"

ONE_PAIR, TWO_PAIRS = [range(4)], [range(2), range(2, 4)]


def both_ways(
    model: str,
    ranks: Sequence[Sequence[int]],
    *,
    name: str = "chimera",
    num_microbatches: int = 8,
    dtype: str = "float64",
    **training: object,
) -> Plan:
    """A plan with uneven stages, for each pair of pipelines on ranks of its own."""
    placed = mirrored(ranks)
    orders = make_schedule(name, placed, num_microbatches)
    of = plan(model, placed, orders=orders, num_microbatches=num_microbatches, dtype=dtype)
    own = msgspec.structs.replace(of.training, **training)
    return msgspec.structs.replace(of, training=own)


def losses(pool: RankPool, of: Plan, steps: int, **folders: str) -> Sequence[float | None]:
    settings = RunSettings(model=of.origin.model, steps=steps, optimizer="adamw", **folders)
    return pool.call(run, of, settings)[0].losses


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT2, *long_tests(LLAMA)])
@pytest.mark.parametrize("name", ["chimera", "gems"])
def test_two_ranks_train_as_the_plain_model(two_ranks: RankPool, model: str, name: str):
    result = checked(two_ranks, both_ways(model, [range(2)], name=name, dtype="float32"))
    assert result.check is not None and result.check.tolerance <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [*long_tests(ONE_PAIR), TWO_PAIRS], ids=["one pair", "two pairs"])
@pytest.mark.parametrize("model", [LLAMA, *long_tests(GPT2)])
def test_four_ranks_train_as_the_plain_model(
    four_ranks: RankPool, ranks: Sequence[Sequence[int]], model: str
):
    result = checked(four_ranks, both_ways(model, ranks, dtype="float32"))
    assert result.check is not None and result.check.tolerance <= 1e-5


@pytest.mark.slow
def test_without_the_sum_over_both_directions_the_check_fails(two_ranks: RankPool):
    settings = RunSettings(model=GPT2, check=True, steps=1)
    complaint, _ = two_ranks.call(run_without_sums, both_ways(GPT2, [range(2)]), settings)
    assert "the gradient of" in complaint


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT2, *long_tests(ENCDEC)])
def test_tied_weights_on_other_ranks_are_summed_over_all_copies(four_ranks: RankPool, model: str):
    """Embedding and head share their ranks in one; in the other, copies lie on two pairs of ranks."""
    checked(four_ranks, both_ways(model, ONE_PAIR))


@pytest.mark.slow
@pytest.mark.parametrize("sync", [*long_tests("end"), "overlap"])
def test_replicas_in_both_directions_share_optimizer_state(four_ranks: RankPool, sync: str):
    of = both_ways(GPT2, ONE_PAIR, zero1=True, sync=sync, optimizer="adamw")
    checked(four_ranks, of, steps=3)


@pytest.mark.slow
def test_sums_go_out_beside_last_backwards(two_ranks: RankPool):
    of = both_ways(GPT2, [range(2)], sync="overlap", bucket_bytes=1 << 14)
    assert all(r.hidden_sync_time is not None for r in checked(two_ranks, of).ranks)


@pytest.mark.slow
def test_clipping_counts_both_copies_once(four_ranks: RankPool):
    of, loop = both_ways(GPT2, ONE_PAIR), Loop(max_norm=0.1)
    whole = plain(of, loop)
    assert min(whole.norms) > 0.1, "nothing would be clipped"
    assert_same(four_ranks.call(in_pipeline, of, loop), whole)


@pytest.mark.slow
@pytest.mark.parametrize("zero1", [*long_tests(False), True])
def test_a_saved_run_continues_in_one_direction_and_back(
    two_ranks: RankPool, tmp_path: Path, zero1: bool
):
    both, alone = both_ways(GPT2, [range(2)], zero1=zero1), plan(GPT2, [[0], [1]])
    alone = msgspec.structs.replace(
        alone, num_microbatches=8, orders=plan(GPT2, [[0], [1]], num_microbatches=8).orders
    )
    whole = losses(two_ranks, both, 3)
    first = losses(two_ranks, both, 1, save=str(tmp_path / "1"))
    second = losses(two_ranks, alone, 1, load=str(tmp_path / "1"), save=str(tmp_path / "2"))
    third = losses(two_ranks, both, 1, load=str(tmp_path / "2"))
    assert [*first, *second, *third] == pytest.approx(whole, rel=1e-5)


def test_torch_s_schedules_refuse_a_rank_of_two_replicas():
    with pytest.raises(PlanError, match="rank 0 runs stages of replicas 0 and 1"):
        check_can_run(both_ways(GPT2, [range(2)]), "torch")
