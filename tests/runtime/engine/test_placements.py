"""Any placement of stages on ranks, in any valid order, trains as the plain model."""

from collections.abc import Sequence
from functools import cache

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.records.plan import Plan, Stage
from autopart.records.run_result import RunResult
from autopart.runtime.engine.run_settings import RunSettings
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import KINDS, fitting_counts, make_schedule
from autopart.schedules.check import check_schedule
from tests.support.long_tests import long_tests
from tests.support.pictures import place_stages
from tests.support.runtime.lent_stash import lending
from tests.support.runtime.on_ranks import ours_and_torchs, run, run_without_sums
from tests.support.runtime.orders import backward_first, planned_orders, valid_orders
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

captured = cache(capture)

Ranks = Sequence[Sequence[int]]

LOOP = [[0], [1], [0], [1]]
V = [[0], [1], [1], [0]]
PIPEDREAM = [[0, 1], [2], [3]]

any_order = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def plan(
    model: str,
    ranks: Ranks,
    *,
    orders: Schedule | None = None,
    num_microbatches: int = 4,
    dtype: str = "float64",
    split_backward: bool = False,
) -> Plan:
    """A plan with uneven stages on `ranks`."""
    cuts = [(s / len(ranks)) ** 1.3 for s in range(1, len(ranks))]
    return plan_for(
        model,
        captured(model, 2, dtype),
        cuts,
        num_microbatches=num_microbatches,
        dtype=dtype,
        ranks=ranks,
        orders=orders or backward_first(ranks, num_microbatches, split_backward=split_backward),
    )


def checked(pool: RankPool, of: Plan, steps: int = 2) -> RunResult:
    """The result of a checked run; the check raises if anything differs."""
    settings = RunSettings(model=of.origin.model, check=True, steps=steps)
    result = pool.call(run, of, settings)[0]
    assert result.check is not None and result.check.gradients <= result.check.tolerance
    return result


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [LOOP, V], ids=["loop", "V"])
def test_several_stages_per_rank_train_as_the_plain_model(two_ranks: RankPool, ranks: Ranks):
    checked(two_ranks, plan("zoo:mlp-tiny", ranks))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [LOOP, V], ids=["loop", "V"])
def test_several_stages_per_rank_agree_to_five_digits_in_float32(two_ranks: RankPool, ranks: Ranks):
    assert checked(two_ranks, plan("zoo:unet-tiny", ranks, dtype="float32")).check


@pytest.mark.slow
def test_tied_weights_on_stages_of_the_same_rank_are_one_parameter(two_ranks: RankPool):
    """Embedding and head are on rank 0, the blocks between them on rank 1."""
    result = checked(two_ranks, plan("zoo:gpt2-tiny", [[0], [1], [0]]), steps=3)
    assert result.check is not None and result.check.num_parameters == 100


@pytest.mark.slow
def test_tied_weights_on_stages_of_two_ranks_are_summed_over_both(two_ranks: RankPool):
    of = plan("zoo:gpt2-tiny", LOOP)
    checked(two_ranks, of)
    settings = RunSettings(model=of.origin.model, check=True, steps=1)
    complaint, _ = two_ranks.call(run_without_sums, of, settings)
    assert "the gradient of tokens.weight on rank" in complaint


@pytest.mark.parametrize(
    "ranks",
    [[[0], [1], [2], [3]] * 2, [[0], [1], [2], [3], [3], [2], [1], [0]]],
    ids=["loop", "V"],
)
@pytest.mark.slow
def test_eight_stages_on_four_ranks_train_as_the_plain_model(four_ranks: RankPool, ranks: Ranks):
    checked(four_ranks, plan("zoo:mlp-tiny", ranks, num_microbatches=6))


@pytest.mark.slow
def test_a_stage_with_more_replicas_than_the_next_trains_as_the_plain_model(four_ranks: RankPool):
    """Stages with two, one and one ranks: replicas take turns with whole microbatches."""
    result = checked(four_ranks, plan("zoo:gpt2-tiny", PIPEDREAM, num_microbatches=5))
    dealt = [{s.action[2:] for s in slices} for slices in result.trace]
    assert dealt == [{"0", "2", "4"}, {"1", "3"}, *[{"0", "1", "2", "3", "4"}] * 2]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[[0], [1, 2, 3]], [[2, 0, 3], [1]]], ids=["1+3", "3+1"])
def test_one_rank_and_three_replicas_train_as_the_plain_model(four_ranks: RankPool, ranks: Ranks):
    checked(four_ranks, plan("zoo:mlp-tiny", ranks, num_microbatches=7))


@pytest.mark.slow
def test_the_check_notices_unsummed_gradients_of_unequal_replicas(four_ranks: RankPool):
    of = plan("zoo:mlp-tiny", PIPEDREAM)
    settings = RunSettings(model=of.origin.model, check=True, steps=1)
    assert "differs from the plain model" in four_ranks.call(run_without_sums, of, settings)[0]


@pytest.mark.slow
def test_a_rank_may_run_a_replicated_stage_and_another_alone(two_ranks: RankPool):
    checked(two_ranks, plan("zoo:mlp-tiny", [[0, 1], [0], [1]], num_microbatches=5))


@pytest.mark.slow
def test_a_replica_without_a_microbatch_takes_part_in_the_sums(two_ranks: RankPool):
    result = checked(two_ranks, plan("zoo:mlp-tiny", [[1, 0], [1]], num_microbatches=1))
    assert [len(slices) for slices in result.trace] == [0, 4]


@pytest.mark.slow
def test_each_stage_has_its_own_times(two_ranks: RankPool):
    result = checked(two_ranks, plan("zoo:mlp-tiny", V))
    assert [stage.ranks for stage in result.stages] == [(0,), (1,), (1,), (0,)]
    for rank in (0, 1):
        busy = sum(stage.busy_time for stage in result.stages if stage.ranks == (rank,))
        assert 0 < 4 * busy <= 1.5 * result.step_time


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks",
    [pytest.param([[0], [1]], id="single", marks=pytest.mark.long), pytest.param(V, id="V")],
)
def test_split_backwards_train_as_the_plain_model(two_ranks: RankPool, ranks: Ranks):
    result = checked(two_ranks, plan("zoo:gpt2-tiny", ranks, split_backward=True))
    ops = {slice.action.lstrip("0123456789")[0] for of in result.trace for slice in of}
    assert ops == {"F", "I", "W"}
    assert all(stage.backward_time > 0 for stage in result.stages)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encdec", *long_tests("unet", "resnet", "moe", "llama", "mlp")])
def test_every_example_trains_with_split_backwards(two_ranks: RankPool, name: str):
    checked(two_ranks, plan(f"zoo:{name}-tiny", V, split_backward=True))


@pytest.mark.long
@pytest.mark.parametrize("name", ["hf_t5", "hf_gpt2", "hf_llama", "hf_bert"])
def test_hugging_face_models_train_with_split_backwards(two_ranks: RankPool, name: str):
    pytest.importorskip("transformers")
    checked(two_ranks, plan(f"tests/support/models/{name}.py", [[0], [1]], split_backward=True))


@pytest.mark.slow
def test_with_replicas_and_split_backwards_gradients_are_summed_after_the_last_w(
    four_ranks: RankPool,
):
    checked(four_ranks, plan("zoo:gpt2-tiny", PIPEDREAM, num_microbatches=5, split_backward=True))


@pytest.mark.slow
def test_a_frozen_stage_has_nothing_to_defer(two_ranks: RankPool):
    checked(
        two_ranks,
        plan("tests/support/models/awkward.py:frozen_start", [[0], [1]], split_backward=True),
    )


NAMED = list(KINDS)


def named(name: str, num_ranks: int, num_microbatches: int) -> Plan:
    """A plan with the schedule called `name`, with two stages per rank if it allows several."""
    ranks = place_stages(KINDS[name], num_ranks, KINDS[name].stages_per_rank or 2)
    orders = make_schedule(name, ranks, num_microbatches)
    check_schedule(orders, ranks, num_microbatches)
    of = plan("zoo:mlp-tiny", ranks, orders=orders, num_microbatches=num_microbatches)
    return lending(of) if KINDS[name].lends else of


def edge(name: str, num_ranks: int, which: str) -> int:
    """The fewest microbatches that the schedule allows, or the next number above its stages."""
    kind = KINDS[name]
    per_rank = kind.stages_per_rank or 2
    near = 1 if which == "fewest" else num_ranks * per_rank + 1
    return fitting_counts(kind, num_ranks, per_rank, near)[0 if which == "fewest" else -1]


@pytest.mark.long
@pytest.mark.parametrize("which", ["fewest", "above the stages"])
@pytest.mark.parametrize("name", NAMED)
def test_every_named_schedule_trains_as_the_plain_model_on_two_ranks(
    two_ranks: RankPool, name: str, which: str
):
    checked(two_ranks, named(name, 2, edge(name, 2, which)))


ON_FOUR_RANKS = ("interleaved-1f1b", "zb-h2", "v-half", "hanayo")
"""Schedules of slow tests. The others are long tests here."""


@pytest.mark.slow
@pytest.mark.parametrize("which", [*long_tests("fewest"), "above the stages"])
@pytest.mark.parametrize(
    "name", [*ON_FOUR_RANKS, *long_tests(*(name for name in NAMED if name not in ON_FOUR_RANKS))]
)
def test_every_named_schedule_trains_as_the_plain_model_on_four_ranks(
    four_ranks: RankPool, name: str, which: str
):
    checked(four_ranks, named(name, 4, edge(name, 4, which)), steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "num_microbatches"),
    [
        (2, 1),
        (2, 9),
        (4, 3),
        *(pytest.param(*x, marks=pytest.mark.long) for x in ((2, 3), (4, 1), (4, 9))),
    ],
)
def test_the_planner_s_own_orders_train_as_the_plain_model(
    two_ranks: RankPool, four_ranks: RankPool, num_ranks: int, num_microbatches: int
):
    """Uneven stages on a V, with split backwards, in orders from the order solver."""
    there = [[rank] for rank in range(num_ranks)]
    ranks = [*there, *reversed(there)]
    orders = planned_orders(ranks, num_microbatches)
    of = plan("zoo:mlp-tiny", ranks, orders=orders, num_microbatches=num_microbatches)
    checked(two_ranks if num_ranks == 2 else four_ranks, of, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        ("gpipe", "GPipe"),
        ("interleaved-1f1b", "Interleaved1F1B"),
        pytest.param("looped-bfs", "LoopedBFS", marks=pytest.mark.long),
        pytest.param("interleaved-zb", "InterleavedZeroBubble", marks=pytest.mark.long),
        ("zbv", "ZBVZeroBubble"),
        ("dualpipev", "DualPipeV"),
    ],
)
def test_gradients_equal_those_from_torch_s_own_schedules(
    two_ranks: RankPool, ours: str, torchs: str
):
    for mine, theirs in two_ranks.call(ours_and_torchs, named(ours, 2, 4), torchs):
        assert mine.keys() == theirs.keys() and len(mine) > 0
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-11, atol=1e-14)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ranks, Schedule]:
    ranks = draw(st.sampled_from([LOOP, V, [[1], [0], [0]], [[0], [0], [1], [1]], [[0, 1], [1]]]))
    return ranks, draw(valid_orders(ranks, 3, split_backward=True))


@pytest.mark.slow
@any_order
@given(cases())
def test_any_valid_order_on_any_placement_trains_the_same(
    two_ranks: RankPool, case: tuple[Ranks, Schedule]
):
    ranks, orders = case
    checked(two_ranks, plan("zoo:mlp-tiny", ranks, orders=orders, num_microbatches=3), steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "split"),
    [
        pytest.param(LOOP, True, id="loop-split"),
        pytest.param(V, False, id="V-whole", marks=pytest.mark.long),
        pytest.param(LOOP, False, id="loop-whole", marks=pytest.mark.long),
        pytest.param(V, True, id="V-split", marks=pytest.mark.long),
    ],
)
def test_recomputed_layers_train_as_the_plain_model_on_several_stages_per_rank(
    two_ranks: RankPool, ranks: Ranks, split: bool
):
    """Every other block is recomputed, the others but for their products; also where W comes behind I."""
    of = plan("zoo:gpt2-tiny", ranks, split_backward=split)

    def changed(stage: Stage) -> Stage:
        blocks = [name for name in stage.layers if name.startswith("blocks.")]
        return msgspec.structs.replace(
            stage, recompute=tuple(blocks[::2]), selective=tuple(blocks[1::2])
        )

    checked(two_ranks, msgspec.structs.replace(of, stages=tuple(map(changed, of.stages))))
