"""Statements in the code of a module with layers: they alone run unchanged, and the rest is cut."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from autopart.errors import ModelError
from autopart.runtime.capture.capture import Captured, batch_leaves, capture_model
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.models.model import TrainingModel
from tests.support.models import opaque
from tests.support.runtime.small_models import WIDTH, Batch, Block, Blocks, batch, training
from tests.support.runtime.stage_chain import assert_same_step, plain_step, random_cuts, stages_step


def other_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((4, WIDTH), generator=generator, dtype=torch.float64),), None


def check(model: TrainingModel, example: Batch, *others: Batch) -> Captured:
    """Capture for `example` and compare all batches with the plain model, under several cuts."""
    captured = capture_model(model, example)
    for given in (example, *others):
        for place in range(3):
            stages = random_cuts(captured, min(2 + place, len(captured.layers)), place)
            np.random.seed(0)
            plain = plain_step(model, given)
            np.random.seed(0)
            assert_same_step(plain, stages_step(model, captured, given, stages), 1e-12)
    return captured


def names(captured: Captured) -> list[str]:
    return [layer.name for layer in captured.layers]


@pytest.mark.slow
def test_routing_by_value_makes_layers_of_its_experts_only() -> None:
    example = batch()
    captured = check(training(opaque.Routed()), example, *map(other_batch, range(3)))
    assert names(captured) == [
        *("before.0", "before.1", "before.2", "router", "experts.0", "experts.1"),
        *("after.0", "after.1", "after.2", "last", "loss"),
    ]
    (warning,) = captured.warnings
    assert "run unchanged in layers 'experts.0', 'experts.1'" in warning
    assert "depends on the values of tensors (tests/support/models/opaque.py:" in warning
    assert captured.layers[4].parameters == ("experts.0.weight", "experts.0.bias")


@pytest.mark.slow
def test_layers_that_numpys_generator_skips_are_skipped_anew_in_each_run() -> None:
    captured = check(training(opaque.Skipping()), batch())
    assert names(captured) == ["layers.0", "layers.1", "layers.2", "layers.3", "last", "loss"]
    assert "draws numbers from a generator of Python or numpy" in captured.warnings[0]
    assert "opaque.py:" in captured.warnings[0]


@pytest.mark.slow
def test_a_modules_own_generator_is_no_constant_of_the_graph() -> None:
    class Own(opaque.Skipping):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = np.random.default_rng(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                if self.numbers.random() > 0.5:
                    x = layer(x)
            return self.last(x)

    captured = capture_model(training(Own()), batch())
    assert names(captured)[:4] == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert "draws numbers" in captured.warnings[0]


@pytest.mark.slow
def test_gradients_in_the_forward_join_all_statements_that_lead_to_them() -> None:
    captured = check(training(opaque.Forces()), batch())
    assert names(captured) == ["layers", "loss"]
    assert "computes gradients in its forward" in captured.warnings[0]


class Packed(nn.Module):
    """A recurrent layer over sequences of different lengths, between two lists of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.ModuleList([Block(), Block()])
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.after = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for block in self.before:
            x = block(x)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        made, _ = self.lstm(packed)
        x, _ = pad_packed_sequence(made, batch_first=True, total_length=x.shape[1])
        for block in self.after:
            x = block(x)
        return x


@pytest.mark.slow
def test_packed_sequences_stay_inside_one_layer() -> None:
    def given(*lengths: int) -> Batch:
        return (batch(4, 6, WIDTH)[0][0], torch.tensor(lengths)), None

    captured = check(training(Packed()), given(6, 3, 2, 5), given(1, 1, 6, 4))
    assert names(captured) == ["before.0", "before.1", "lstm", "after.0", "after.1", "loss"]


@pytest.mark.slow
def test_a_gradient_hook_in_the_models_own_code_keeps_the_layer_that_made_the_tensor() -> None:
    class Damped(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            y = self.blocks[0](x)
            y.register_hook(lambda gradient: gradient * 0.1)
            return self.last(self.blocks[1](y + x))

    captured = check(training(Damped(Block(), Block())), batch())
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]
    assert "in layer 'blocks.0'" in captured.warnings[0]
    assert captured.tied == {}, "the statements use one element of the list"


@pytest.mark.slow
def test_module_hooks_run_once_and_a_backward_hook_makes_one_layer_of_its_block() -> None:
    model = training(Blocks(Block(), Block(), Block()))
    model.model.blocks[1].register_full_backward_hook(lambda _m, given, _o: (given[0] * 2,))
    model.model.blocks[1].register_forward_hook(lambda _m, _i, output: output * 3)
    captured = check(model, batch())
    assert names(captured) == ["first", "blocks.0", "blocks.1", "blocks.2", "last", "loss"]
    assert len(captured.warnings) == 1
    assert (
        "it has a backward hook (tests/runtime/capture/test_statement_calls.py:"
        in (captured.warnings[0])
    )


@pytest.mark.slow
def test_another_branch_and_an_early_return_are_taken_when_the_values_say_so() -> None:
    class Early(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks[0](self.first(x))
            x = self.blocks[1](x)
            if x.sum() > 0:
                y = self.blocks[2](x)
                x = y + 1
            else:
                x = x * 3
            if x.abs().max() > 1e9:
                return self.last(x)
            return self.last(x) * 2

    model = training(Early(Block(), Block(), Block()))
    others = [other_batch(seed) for seed in range(4)]
    captured = check(model, batch(), *others)
    assert names(captured)[:4] == ["first", "blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.slow
def test_numbers_that_depend_on_values_stay_inside() -> None:
    class Counting(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            positive = int((x > 0).sum())
            half = positive // 2
            x = x * (half if half % 2 else 1)
            return self.last(x)

    captured = check(training(Counting(Block(), Block())), batch(), *map(other_batch, range(4)))
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]


@pytest.mark.slow
def test_writes_into_a_tensor_and_into_a_list_are_kept() -> None:
    class Writing(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            seen = []
            total = torch.zeros_like(x)
            for block in self.blocks:
                x = block(x)
                if x.mean() > 0:
                    total += x
                    seen.append(x)
            return self.last(x + total + sum(seen))

    captured = check(training(Writing(Block(), Block())), batch(), *map(other_batch, range(3)))
    assert captured.warnings


@pytest.mark.slow
def test_shapes_that_change_between_batches_are_refused_when_they_come() -> None:
    class Shrinking(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.blocks[0](self.first(x))
            if x.sum() > 0:
                y = y[:2]
            return self.last(self.blocks[1](y))

    positive, negative = ((torch.ones(4, WIDTH).double() * sign,) for sign in (1, -1))
    captured = capture_model(training(Shrinking(Block(), Block())), (negative, None))
    (program,) = split_stages(captured, [names(captured)])
    assert len(names(captured)) > 3
    program.module(*batch_leaves(captured, (negative, None)).values())
    with pytest.raises(ModelError, match=r"test_statement_calls.py:\d+.* other shapes or values"):
        program.module(*batch_leaves(captured, (positive, None)).values())


@pytest.mark.slow
def test_code_that_cannot_be_divided_still_makes_one_layer() -> None:
    class Private(Blocks):
        def __scaled(self, x: Any) -> Any:
            return x * 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.__scaled(x) if x.sum() > 0 else x)

    captured = check(training(Private(Block(), Block())), batch())
    assert names(captured) == ["model"]
    assert "the whole model is one layer" in captured.warnings[0]


@pytest.mark.slow
def test_a_function_that_runs_all_layers_is_one_statement() -> None:
    class Handing(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _run_all(self, x)

    captured = check(training(Handing(Block(), Block())), batch())
    assert names(captured) == ["blocks", "last", "loss"]


def _run_all(model: Any, x: torch.Tensor) -> torch.Tensor:
    for block in [model.first, *model.blocks] if bool(x.sum() > -1e9) else []:
        x = block(x)
    return model.last(x)


@pytest.mark.slow
def test_detrs_encoder_is_cut_between_its_layers_though_each_asks_for_infinities() -> None:
    """While it is traced, it gives its layers a mask that it leaves out otherwise."""
    detr = pytest.importorskip("transformers.models.detr.modeling_detr")

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {
                "d_model": 16,
                "encoder_layers": 2,
                "encoder_attention_heads": 2,
                "dropout": 0.0,
            }
            config = detr.DetrConfig(**sizes, encoder_ffn_dim=16, attention_dropout=0.0)
            self.encoder, self.last = detr.DetrEncoder(config), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask, places = torch.ones(x.shape[:2]), torch.zeros(1, *x.shape[1:], dtype=x.dtype)
            made = self.encoder(
                inputs_embeds=x, attention_mask=mask, spatial_position_embeddings=places
            )
            return self.last(made.last_hidden_state)

    captured = check(training(Encoder()), batch(2, 5, 16))
    assert names(captured) == ["encoder.layers.0", "encoder.layers.1", "last", "loss"]


@pytest.mark.slow
def test_qwen2_vls_language_model_is_cut_though_its_positions_depend_on_the_text() -> None:
    transformers = pytest.importorskip("transformers")
    model, example = _qwen2_vl(transformers)
    captured = capture_model(model, example)
    layers = names(captured)
    assert [n for n in layers if ".language_model.layers." in n] == [
        f"model.language_model.layers.{place}" for place in range(2)
    ]
    assert "model.visual" in layers and layers[-1] == "lm_head"
    assert not any("autopart" in warning for warning in captured.warnings)
    plain = plain_step(model, example)
    stages = random_cuts(captured, 3, 0)
    assert_same_step(plain, stages_step(model, captured, example, stages), 1e-5)


def _qwen2_vl(transformers: Any) -> tuple[TrainingModel, Batch]:
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [1, 1, 2],
            "rope_theta": 10000.0,
        },
    }
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    torch.manual_seed(0)
    ids = torch.randint(3, 50, (2, 10))
    ids[:, 1], ids[:, 2:6], ids[:, 6] = 62, 60, 63
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2 * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (ids == 60).int(),
        "labels": ids,
    }
    network = transformers.Qwen2VLForConditionalGeneration(config)
    return TrainingModel(network, name="qwen2_vl").train(), (inputs, None)
