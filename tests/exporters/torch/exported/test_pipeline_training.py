"""The exported torch modules train like the plain model."""

from pathlib import Path

import pytest

from tests.support.exporters.exported import check_training
from tests.support.exporters.odd_model import ODD
from tests.support.exporters.plans import make_plan
from tests.support.places import MODELS
from tests.support.runtime.rank_pool import RankPool

BLOCKS = [f"blocks.{index}" for index in range(8)]
GPT2 = [["tokens", "positions", *BLOCKS[:3]], [*BLOCKS[3:], "norm", "head", "loss"]]
UNET = [
    ["encoder.0", "pool"],
    ["encoder.1", "pool@1", "encoder.2"],
    ["pool@2", "bottom", "decoder.0"],
    ["decoder.1", "decoder.2", "head", "loss"],
]
UNET_IN_TWO = [UNET[0] + UNET[1], UNET[2] + UNET[3]]


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "microbatches"), [("gpipe", 3), ("1f1b", 3)])
def test_two_stages_share_the_gradient_of_a_tied_head(
    two_ranks: RankPool, schedule: str, microbatches: int
) -> None:
    plan = make_plan(GPT2, [(0,), (1,)], microbatches, schedule)
    check_training(two_ranks, plan, "zoo:gpt2-tiny")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_skip_connections_cross_the_cut(two_ranks: RankPool, schedule: str) -> None:
    plan = make_plan(UNET_IN_TWO, [(1,), (0,)], 4, schedule)
    check_training(two_ranks, plan, "zoo:unet-tiny")


@pytest.mark.long
def test_stages_between_relay_skip_connections(four_ranks: RankPool) -> None:
    plan = make_plan(UNET, [(0,), (3,), (1,), (2,)], 5)
    check_training(four_ranks, plan, "zoo:unet-tiny")


@pytest.mark.slow
def test_replicas_of_two_stages_sum_their_gradients_even_with_uneven_shares(
    four_ranks: RankPool,
) -> None:
    plan = make_plan(GPT2, [(0, 3), (2, 1)], 5)
    check_training(four_ranks, plan, "zoo:gpt2-tiny")


@pytest.mark.slow
def test_one_stage_on_two_ranks_is_data_parallel(two_ranks: RankPool) -> None:
    layers = [[str(index) for index in range(16)] + ["loss"]]
    check_training(two_ranks, make_plan(layers, [(0, 1)], 3), "zoo:mlp-tiny")


@pytest.mark.slow
def test_the_clipping_norm_covers_all_stages_and_counts_tied_gradients_once(
    four_ranks: RankPool,
) -> None:
    plan = make_plan(GPT2, [(0, 1), (2, 3)], 4, "gpipe")
    check_training(four_ranks, plan, "zoo:gpt2-tiny", max_norm=0.1)


@pytest.mark.slow
def test_a_model_with_its_own_loss_and_shared_masks_trains(two_ranks: RankPool) -> None:
    pytest.importorskip("transformers")
    encoder = ["encoder.embed_tokens", "encoder.block.0", "encoder.block.1"]
    decoder = ["decoder.block.0", "decoder.block.1", "decoder.final_layer_norm", "lm_head"]
    layers = [[*encoder, "decoder.embed_tokens"], ["encoder.final_layer_norm", *decoder]]
    check_training(two_ranks, make_plan(layers, [(0,), (1,)], 3), str(MODELS / "hf_t5.py"))


@pytest.mark.slow
def test_weights_whose_values_do_not_count_keep_no_gradient(two_ranks: RankPool) -> None:
    for layers in (
        [["signs", "values"], ["gate", "last", "loss"]],
        [["signs"], ["values", "gate", "last", "loss"]],
    ):
        plan = make_plan(layers, [(0,), (1,)], 3)
        check_training(two_ranks, plan, f"{MODELS / 'awkward.py'}:signs")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_frozen_stages_scalar_inputs_flags_and_writes_in_place_train(
    two_ranks: RankPool, tmp_path: Path, schedule: str
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    layers = [["frozen.0"], ["layers.0", "layers.1", "layers.2", "layers.3"]]
    plan = make_plan(layers, [(0,), (1,)], 3, schedule)
    check_training(two_ranks, plan, str(tmp_path / "odd.py"))
    layers = [["frozen.0", "layers.0", "layers.1"], ["layers.2", "layers.3"]]
    plan = make_plan(layers, [(0,), (1,)], 3, schedule)
    check_training(two_ranks, plan, str(tmp_path / "odd.py"))
