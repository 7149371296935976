"""Models that the exporter refuses or would misunderstand: the offending blocks run unchanged."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autopart.errors import ModelError
from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.stage import stage_parameters
from autopart.runtime.models.model import TrainingModel
from tests.support.runtime.hugging_face import hugging_face, mixtral
from tests.support.runtime.small_models import (
    WIDTH,
    Batch,
    Block,
    Blocks,
    Hesitant,
    Hesitating,
    Rounding,
    batch,
    linear,
    training,
)
from tests.support.runtime.stage_chain import assert_same_step, plain_step, random_cuts, stages_step


def check(model: TrainingModel, example: Batch, tolerance: float = 1e-12) -> Captured:
    captured = capture_model(model, example)
    plain = plain_step(model, example)
    assert_same_step(plain, stages_step(model, captured, example), tolerance)
    for seed in range(2):
        stages = random_cuts(captured, min(2 + seed, len(captured.layers)), seed)
        assert_same_step(plain, stages_step(model, captured, example, stages), tolerance)
    return captured


def names(captured: Captured) -> list[str]:
    return [layer.name for layer in captured.layers]


@pytest.mark.slow
def test_a_block_whose_control_flow_depends_on_values_is_one_layer_and_the_warning_says_why() -> (
    None
):
    captured = check(training(Hesitating()), batch())
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]
    assert len(captured.warnings) == 2
    assert "'blocks.0' runs unchanged" in captured.warnings[0]
    assert "depends on the values of tensors" in captured.warnings[0]
    assert "small_models.py:" in captured.warnings[0]
    assert captured.layers[1].kind == "Hesitant"
    assert captured.layers[1].parameters == tuple(
        f"blocks.0.{name}" for name in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")
    )


@pytest.mark.slow
def test_it_takes_the_other_branch_when_the_values_say_so() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.sum() > 0 else x * 3

    model = training(Blocks(nn.Sequential(Branching(), Block()), Block()))
    nn.init.eye_(model.model.first.weight)
    nn.init.zeros_(model.model.first.bias)
    positive, negative = (torch.ones(4, WIDTH).double(),), (-torch.ones(4, WIDTH).double(),)
    captured = capture_model(model, (positive, None))
    for inputs in (positive, negative):
        plain = plain_step(model, (inputs, None))
        stages = [["first"], names(captured)[1:]]
        again = stages_step(model, captured, (inputs, None), stages)
        assert again[1].keys() - plain[1].keys() == set()
        assert_same_step(plain, again, 1e-12)


@pytest.mark.slow
def test_the_block_around_a_hidden_offender_is_run_as_it_is() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x.sum(-1) > 0].repeat(2, 1)[: x.shape[0] // 4 or 1].mean(0) + x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.linear = Inner(), linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return self.inner(y) if y.norm() > 1e-9 else y

    captured = check(training(Blocks(Block(), Outer(), Block())), batch())
    assert names(captured) == ["first", "blocks.0", "blocks.1", "blocks.2", "last", "loss"]
    assert [w.split("'")[1] for w in captured.warnings] == ["blocks.1"]


@pytest.mark.slow
def test_a_block_that_writes_into_its_input_is_no_offender() -> None:
    class Careful(Hesitant):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)["y"]

    captured = check(training(Blocks(Block(), nn.ReLU(inplace=True), Careful())), batch())
    assert [w.split("'")[1] for w in captured.warnings if "runs unchanged" in w] == ["blocks.2"]
    assert names(captured) == ["first", "blocks.0", "blocks.2", "last", "loss"]


@pytest.mark.slow
def test_a_model_whose_own_code_cannot_be_divided_is_one_layer_that_still_trains() -> None:
    class Deciding(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The class changes a private name, so that the statements cannot leave it.
            self.__large = bool(x.mean() > -1e9)
            return super().forward(x * 2 if self.__large else x)

    model = training(Deciding(Block(), nn.BatchNorm1d(WIDTH)))
    captured = check(model, batch())
    assert names(captured) == ["model"]
    # A run captures again in other processes, and compares hashes.
    assert capture_model(model, batch()).graph_hash == captured.graph_hash
    assert "the whole model is one layer" in captured.warnings[0]
    assert "depends on the values" in captured.warnings[0]
    assert (
        dict(captured.module.named_parameters()).keys()
        == dict(model.model.named_parameters()).keys()
    )
    assert captured.layers[0].buffers == tuple(dict(model.model.named_buffers()))


@pytest.mark.slow
def test_an_autograd_function_of_the_users_keeps_its_own_backward() -> None:
    captured = check(training(Blocks(Block(), Rounding(), Block())), batch())
    assert "'blocks.1' runs unchanged" in captured.warnings[0]
    assert "autograd function Hard" in captured.warnings[0]


@pytest.mark.slow
def test_a_gradient_hook_is_kept() -> None:
    class Damped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1
            if x.requires_grad:
                x.register_hook(lambda gradient: gradient * 0.1)
            return x

    captured = check(training(Blocks(Block(), Damped(), Block())), batch())
    assert "'blocks.1' runs unchanged" in captured.warnings[0]
    assert "hook for the gradient" in captured.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_inside_the_model_keeps_the_gradients(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.block, x, use_reentrant=reentrant)

    captured = check(training(Blocks(Checkpointed(), Checkpointed())), batch())
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]
    assert not captured.warnings
    assert captured.checkpointed.whole == ("blocks.0", "blocks.1")
    assert captured.layers[1].fingerprint == captured.layers[2].fingerprint


@pytest.mark.slow
def test_opaque_blocks_that_share_a_buffer_are_one_layer() -> None:
    class Watching(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) if x.abs().sum() > 0 else x

    norm = nn.BatchNorm1d(WIDTH)
    captured = check(training(Blocks(Watching(norm), Block(), Watching(norm))), batch())
    assert names(captured) == ["first", "blocks.0", "last", "loss"]
    assert any("running_mean" in warning for warning in captured.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_experts_in_a_loop_over_the_data_make_opaque_layers_of_hugging_faces_mixtral(
    use_cache: bool,
) -> None:
    example = hugging_face("llama")[1]
    torch.manual_seed(0)
    model = TrainingModel(mixtral(use_cache=use_cache), name="mixtral").train()
    captured = check(model, example, 1e-6)
    assert names(captured) == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
        "lm_head",
    ]
    assert len(captured.warnings) == 2
    assert model.model.config.use_cache == use_cache


@pytest.mark.slow
def test_a_custom_operation_with_a_backward_is_an_operation_as_any_other() -> None:
    """On a CPU, Mixtral's grouped experts are such an operation."""
    torch.manual_seed(0)
    model = TrainingModel(mixtral(use_cache=False, experts="grouped_mm"), name="mixtral").train()
    captured = check(model, hugging_face("llama")[1], 1e-6)
    assert len(captured.layers) == 5 and captured.warnings == ()
    assert any("grouped_mm" in node for node in captured.layers[1].nodes)


def test_a_model_that_depends_on_values_cannot_be_captured_on_the_meta_device() -> None:
    model = training(Hesitating()).to("meta")
    with pytest.raises(ModelError, match=r"meta device.*depends on the values.*--device cpu"):
        capture_model(model, ((torch.empty(4, WIDTH, dtype=torch.float64, device="meta"),), None))


@pytest.mark.slow
def test_an_autograd_function_can_be_captured_on_the_meta_device() -> None:
    model = training(Blocks(Block(), Rounding())).to("meta")
    example = ((torch.empty(4, WIDTH, dtype=torch.float64, device="meta"),), None)
    captured = capture_model(model, example)
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]
    assert all(value.has_gradient for value in captured.values)


@pytest.mark.slow
def test_a_weight_tied_three_times_is_one_parameter_in_and_around_opaque_blocks() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = linear()
            self.encoder, self.decoder, self.head = Hesitant(), Hesitant(), linear()
            for part in (self.encoder.linear, self.decoder.linear, self.head):
                part.weight = self.shared.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.encoder(x)["y"]
            return self.head(self.decoder(y)["y"])

    captured = check(training(Tied()), batch())
    assert captured.tied["shared.weight"] == ("encoder", "decoder", "head")
    for program in split_stages(captured, [["encoder"], ["decoder"], ["head", "loss"]]):
        assert "shared.weight" in stage_parameters(program)


def test_an_operation_whose_error_the_model_catches_is_left_out() -> None:
    class Careful(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return x.view(3, 7)
            except RuntimeError:
                return x * 2

    captured = check(training(Blocks(Block(), Careful())), batch())
    assert captured.warnings == ()


@pytest.mark.slow
def test_a_block_with_a_generator_of_its_own_runs_unchanged() -> None:
    class Drawing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            own = torch.Generator().manual_seed(3)
            return x + torch.rand(WIDTH, generator=own, dtype=x.dtype)

    captured = check(training(Blocks(Block(), Drawing(), Block())), batch())
    assert [w.split("'")[1] for w in captured.warnings] == ["blocks.1"]
    assert "it uses a Generator of its own" in captured.warnings[0]


def test_a_forward_that_writes_into_a_trained_parameter_is_refused() -> None:
    class Clipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.linear.weight.clamp_(-0.1, 0.1)
            return self.linear(x)

    with pytest.raises(ModelError, match=r"writes into the parameter 'blocks\.0\.linear\.weight'"):
        capture_model(training(Blocks(Clipping())), batch())
