"""The pipeline in a user's training loop, compared with the plain model in the same loop."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from autopart.records.plan import Plan
from tests.runtime.engine.test_placements import LOOP, PIPEDREAM, Ranks, V
from tests.runtime.engine.test_placements import plan as placed
from tests.support.long_tests import long_tests
from tests.support.runtime.own_loop import (
    Loop,
    Trained,
    complaint_of_load,
    complaint_of_step,
    in_pipeline,
    loaded_and_trained,
    plain,
    saved_half_way,
)
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

captured = cache(capture)


def assert_same(ranks: Sequence[Trained], whole: Trained, tolerance: float = 1e-11) -> None:
    """Compares losses and norms on every rank, and each gradient and state tensor on some rank."""
    for one in ranks:
        assert one.losses == pytest.approx(whole.losses, rel=1e-6)  # GPT-2 makes it in float32.
        assert one.norms == pytest.approx(whole.norms, rel=tolerance)
    for kind in ("gradients", "state"):
        theirs = getattr(whole, kind)
        seen: set[str] = set()
        largest = max(float(t.abs().max()) for t in theirs.values())
        for one in ranks:
            for name, mine in getattr(one, kind).items():
                apart = float((mine.double() - theirs[name].double()).abs().max())
                assert apart <= tolerance * largest, f"{kind} of {name}: {apart}"
                seen.add(name)
        assert seen == set(theirs), kind


@pytest.mark.slow
def test_a_user_s_loop_trains_as_with_the_plain_model(two_ranks: RankPool):
    of, loop = placed("zoo:gpt2-tiny", V), Loop(steps=3)
    assert_same(two_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.slow
def test_clipping_uses_the_norm_of_the_whole_model(two_ranks: RankPool):
    """Tied weights are on both ranks, and count once."""
    of, loop = placed("zoo:gpt2-tiny", LOOP), Loop(max_norm=0.1)
    whole = plain(of, loop)
    assert min(whole.norms) > 0.1, "nothing would be clipped"
    assert_same(two_ranks.call(in_pipeline, of, loop), whole)


@pytest.mark.slow
def test_clipping_counts_replicas_once(four_ranks: RankPool):
    of, loop = placed("zoo:gpt2-tiny", PIPEDREAM, num_microbatches=3), Loop(max_norm=0.1)
    assert_same(four_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.slow
def test_a_norm_below_the_limit_changes_nothing(two_ranks: RankPool):
    of = placed("zoo:mlp-tiny", [[0], [1]])
    free = two_ranks.call(in_pipeline, of, Loop())
    for one, clipped in zip(free, two_ranks.call(in_pipeline, of, Loop(max_norm=1e6)), strict=True):
        torch.testing.assert_close(one.state, clipped.state, rtol=0, atol=0)


@pytest.mark.slow
def test_gradients_of_several_batches_add_up_with_replicas_and_tied_weights(four_ranks: RankPool):
    of, loop = placed("zoo:gpt2-tiny", PIPEDREAM, num_microbatches=3), Loop(accumulate=3)
    assert_same(four_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.slow
def test_a_scaled_loss_gives_equal_gradients_after_unscaling(two_ranks: RankPool):
    of, loop = placed("zoo:mlp-tiny", V, split_backward=True), Loop(scale=1024.0)
    assert_same(two_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.slow
def test_all_ranks_see_an_overflow_on_one_rank(two_ranks: RankPool):
    of = placed("zoo:mlp-tiny", [[0], [1]])
    with pytest.raises(AssertionError, match="unscale_gradients"):
        RankPool.call(separate_pool(), in_pipeline, of, Loop(scale=float("inf")))


@cache
def separate_pool() -> RankPool:
    """A separate pool, because a failure ends it."""
    return RankPool(2)


@pytest.mark.slow
def test_whole_batches_are_divided_along_their_first_dimension(two_ranks: RankPool):
    of, loop = placed("zoo:mlp-tiny", LOOP), Loop(whole_batches=True)
    assert_same(two_ranks.call(in_pipeline, of, loop), plain(of, loop))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "UsageError: the batch lacks microbatch 3; this rank needs 0, 1, 2, 3"),
        ("ragged", "cannot be divided into 4 microbatches along its first dimension"),
        ("shape", "but the model was captured with"),
    ],
)
def test_a_batch_that_does_not_fit_the_plan_is_refused(two_ranks: RankPool, fault: str, said: str):
    for complaint in two_ranks.call(complaint_of_step, placed("zoo:mlp-tiny", [[0], [1]]), fault):
        assert said in complaint


@pytest.mark.slow
def test_a_state_has_the_model_s_own_names_and_must_be_complete(two_ranks: RankPool):
    of = placed("zoo:gpt2-tiny", [[0], [1]])
    (first, complaint), (second, _) = two_ranks.call(complaint_of_load, of)
    assert {*first, *second} == set(plain(of, Loop(steps=0)).state)
    assert "UsageError: 'blocks.0" in complaint and "is missing in the state to load" in complaint


def another(of: Plan, ranks: Ranks, cuts: Sequence[float]) -> Plan:
    """The same model in other stages."""
    return plan_for(
        of.origin.model,
        captured(of.origin.model, 2, "float64"),
        cuts,
        dtype="float64",
        ranks=ranks,
        schedule="gpipe",
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", [*long_tests("zoo:mlp-tiny"), "zoo:gpt2-tiny"])
def test_training_continues_from_a_checkpoint_under_another_plan(
    two_ranks: RankPool, tmp_path: Path, model: str
):
    """Two steps in a V with four stages, a save, and two steps in two stages equal four steps."""
    before = placed(model, V)
    after = another(before, [[1], [0]], [0.6])
    first, second = Loop(optimizer="adamw"), Loop(optimizer="adamw", first=2)
    two_ranks.call(saved_half_way, before, first, tmp_path / "saved")
    ranks = two_ranks.call(loaded_and_trained, after, second, tmp_path / "saved")
    whole = plain(before, Loop(steps=4, optimizer="adamw"))
    late = Trained(whole.losses[2:], [], whole.gradients, whole.state)
    assert_same(ranks, late, tolerance=1e-8)
