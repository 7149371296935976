"""The layers that models are divided into, and the values between them."""

import pytest
import torch
from torch import nn

from autopart.runtime.capture.capture import Captured, capture_model
from tests.support.runtime.hugging_face import captured_hugging_face
from tests.support.runtime.small_models import (
    WIDTH,
    Block,
    Blocks,
    Experts,
    ResNet,
    SkipNet,
    TiedDecoder,
    batch,
    decoder_batch,
    decoder_loss,
    linear,
    training,
)


def names(captured: Captured) -> list[str]:
    return [layer.name for layer in captured.layers]


def layers_of(model: nn.Module, granularity: str = "block") -> list[str]:
    return names(capture_model(training(model), batch(), granularity=granularity))  # pyright: ignore


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt2", "wte wpe drop h.0 h.1 h.2 ln_f"),
        ("llama", "embed_tokens layers.0 layers.1 layers.2 norm"),
        ("bert", "embeddings encoder.layer.0 encoder.layer.1 encoder.layer.2"),
    ],
)
def test_a_transformers_blocks_are_its_layers(model: str, expected: str) -> None:
    captured = captured_hugging_face(model)[2]
    prefix, head = {
        "gpt2": ("transformer", "lm_head"),
        "llama": ("model", "lm_head"),
        "bert": ("bert", "cls"),
    }[model]
    assert names(captured) == [*(f"{prefix}.{name}" for name in expected.split()), head]
    assert not captured.warnings


def test_an_encoder_decoder_has_the_layers_of_both() -> None:
    captured = captured_hugging_face("t5")[2]
    found = names(captured)
    assert found[0] == "encoder.embed_tokens" and found[-1] == "lm_head"
    for block in range(2):
        assert {f"encoder.block.{block}.layer.{part}" for part in range(2)} < set(found)
        assert {f"decoder.block.{block}.layer.{part}" for part in range(3)} < set(found)
    assert captured.tied == {
        "shared.weight": ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    }


@pytest.mark.slow
def test_a_residual_networks_blocks_are_its_layers_and_a_sum_joins_its_latest_producer() -> None:
    captured = capture_model(training(ResNet()), batch(2, 3, 4, 4))
    assert names(captured) == ["conv1", "bn1", "layer1.0", "layer1.1", "fc", "loss"]
    assert [layer.kind for layer in captured.layers][2:] == [
        "Residual",
        "Residual",
        "Linear",
        "loss",
    ]
    mean = next(value for value in captured.values if value.consumers == ("fc",))
    assert mean.producer == "layer1.1" and mean.shape == (2, 4)


@pytest.mark.slow
def test_an_in_place_write_belongs_to_the_layer_that_made_the_tensor() -> None:
    captured = capture_model(training(ResNet()), batch(2, 3, 4, 4))
    assert len(captured.warnings) == 1
    assert "in place" in captured.warnings[0] and "'relu' into bn1" in captured.warnings[0]


def test_the_elements_of_a_sequential_are_layers() -> None:
    model = nn.Sequential(linear(), nn.ReLU(), nn.Sequential(linear(), nn.Tanh()), Block())
    assert layers_of(model) == ["0", "1", "2", "3", "loss"]


def test_leaf_modules_are_layers_when_asked_for_and_glue_joins_them() -> None:
    expected = ["first", "norm", "mlp.0", "mlp.1", "mlp.2", "dropout", "last", "loss"]
    found = layers_of(Blocks(Block()), granularity="module")
    assert found == [
        name if name in ("first", "last", "loss") else f"blocks.0.{name}" for name in expected
    ]


@pytest.mark.slow
def test_experts_beside_each_other_are_one_layer_with_their_gate() -> None:
    assert layers_of(Blocks(Experts(), Experts())) == [
        "first",
        "blocks.0",
        "blocks.1",
        "last",
        "loss",
    ]


@pytest.mark.slow
def test_a_list_inside_a_wrapper_is_found() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Blocks(Block(), Block())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * 2

    expected = ["net.first", "net.blocks.0", "net.blocks.1", "net.last", "loss"]
    assert layers_of(Wrapper()) == expected


@pytest.mark.slow
def test_a_large_module_whose_children_run_one_after_another_is_opened_without_a_list() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = Block(), Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.late(self.early(x)) + x

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = Backbone(), nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(x))

    assert layers_of(Classifier()) == ["backbone.early", "backbone.late", "head", "loss"]


def test_each_call_of_a_module_is_a_layer_and_they_share_its_parameters() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.out = Block(), linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.block(self.block(x)))

    captured = capture_model(training(Twice()), batch())
    assert names(captured) == ["block", "block@1", "out", "loss"]
    assert captured.tied["block.norm.weight"] == ("block", "block@1")
    assert captured.layers[0].parameters == captured.layers[1].parameters


def test_modules_that_are_never_reached_give_no_layer() -> None:
    model = Blocks(Block())
    model.unused = linear()
    captured = capture_model(training(model), batch())
    assert names(captured) == ["first", "blocks.0", "last", "loss"]
    assert not any("unused" in name for layer in captured.layers for name in layer.parameters)


@pytest.mark.slow
def test_masks_and_positions_are_no_values_between_layers() -> None:
    captured = capture_model(training(TiedDecoder(), decoder_loss), decoder_batch())
    between = [(value.producer, value.consumers) for value in captured.values]
    assert between == [
        ("tokens", ("blocks.0",)),
        ("blocks.0", ("blocks.1",)),
        ("blocks.1", ("blocks.2",)),
        ("blocks.2", ("head",)),
        ("head", ("loss",)),
    ]
    consumers = {leaf.name: leaf.consumers for leaf in captured.inputs}
    assert consumers == {
        "ids": ("tokens",),
        "mask": ("blocks.0", "blocks.1", "blocks.2"),
        "target": ("loss",),
    }


@pytest.mark.slow
def test_a_tied_weight_has_its_first_name_and_every_layer_that_reads_it() -> None:
    captured = capture_model(training(TiedDecoder(), decoder_loss), decoder_batch())
    assert captured.tied == {"tokens.weight": ("tokens", "head")}
    assert captured.layers[-2].parameters == ("tokens.weight",)


@pytest.mark.slow
def test_a_slice_of_a_parameter_belongs_to_the_layer_that_needs_it_first() -> None:
    captured = capture_model(training(TiedDecoder(), decoder_loss), decoder_batch())
    assert captured.layers[0].name == "tokens"
    assert captured.layers[0].parameters == ("positions", "tokens.weight")


@pytest.mark.slow
def test_a_skip_is_one_value_with_all_its_consumers() -> None:
    """The concatenation joins the layer to whose output it appends the skip."""
    captured = capture_model(training(SkipNet()), batch())
    skips = {v.producer: v.consumers for v in captured.values if v.producer.startswith("down")}
    assert skips == {
        "down.0": ("down.1", "up.1"),
        "down.1": ("down.2", "up.0"),
        "down.2": ("bottom",),
    }


def test_a_value_knows_its_bytes_and_whether_a_gradient_flows_back() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.body, self.head = nn.Linear(WIDTH, 1), linear(), linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = self.router(x)
            return self.head(torch.where(score > 0, self.body(x), x))[score.argmax(0)]

    captured = capture_model(training(Routed()), batch())
    by_dtype = {value.dtype: value for value in captured.values if value.producer == "router"}
    assert by_dtype.keys() == {torch.bool, torch.int64}
    assert not any(value.has_gradient for value in by_dtype.values())
    body = next(value for value in captured.values if value.producer == "body")
    assert body.has_gradient and body.bytes == 4 * WIDTH * 8 and body.dtype == torch.float64


@pytest.mark.slow
def test_layers_that_share_a_changing_buffer_are_one_and_the_warning_names_it() -> None:
    class Counting(nn.Module):
        def __init__(self, seen: torch.Tensor) -> None:
            super().__init__()
            self.linear = linear()
            self.register_buffer("seen", seen)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(x.detach().mean(0))
            return self.linear(x) + self.seen

    seen = torch.zeros(WIDTH, dtype=torch.float64)
    model = Blocks(Counting(seen), Block(), Counting(seen), Block())
    model.blocks[2].seen = model.blocks[0].seen
    wrapped = training(model)
    model.blocks[2].seen = model.blocks[0].seen
    captured = capture_model(wrapped, batch())
    assert names(captured) == ["first", "blocks.0", "blocks.3", "last", "loss"]
    told = " ".join(captured.warnings)
    assert "'blocks.0.seen'" in told and "'blocks.0', 'blocks.2'" in told
    assert "each needs a value of another" in told and "'blocks.1'" in told


def test_a_number_read_from_a_tensor_keeps_its_layers_together() -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = linear(), linear(), linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            largest = x.abs().max().item()
            return self.c(self.b(x) / largest)

    captured = capture_model(training(Normalising()), batch())
    assert names(captured) == ["a", "c", "loss"]
    assert "'a', 'b' are one layer" in captured.warnings[0] and "item" in captured.warnings[0]


def test_layers_are_in_the_models_order_of_execution() -> None:
    class Reversed(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.last(x)
            for block in reversed(self.blocks):
                x = block(x)
            return self.first(x)

    expected = ["last", "blocks.1", "blocks.0", "first", "loss"]
    assert layers_of(Reversed(Block(), Block())) == expected


@pytest.mark.slow
def test_a_frozen_encoder_under_no_grad_is_still_layers() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Blocks(Block(), Block()), linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.encoder(x)
            return self.head(x)

    captured = capture_model(training(Probe()), batch())
    assert names(captured)[:4] == [
        f"encoder.{n}" for n in ("first", "blocks.0", "blocks.1", "last")
    ]
    gradients = {value.producer: value.has_gradient for value in captured.values}
    assert gradients == {**dict.fromkeys(names(captured)[:4], False), "head": True}


@pytest.mark.slow
def test_blocks_under_autocast_are_still_layers() -> None:
    class Mixed(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    model = training(Mixed(Block(), Block()), double=False)
    captured = capture_model(model, ((torch.randn(4, WIDTH),), None))
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]
    assert captured.values[0].dtype == torch.bfloat16


def test_a_root_without_modules_is_one_layer_before_the_loss() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x @ self.weight)

    captured = capture_model(training(Bare()), batch())
    assert names(captured) == ["model", "loss"]
    assert captured.layers[0].kind == "Bare"


def test_a_parametrized_module_is_a_layer_as_any_other() -> None:
    normed = [nn.utils.parametrizations.weight_norm(linear()) for _ in range(2)]
    captured = capture_model(training(Blocks(*normed)), batch())
    assert names(captured) == ["first", "blocks.0", "blocks.1", "last", "loss"]
    assert "blocks.0.parametrizations.weight.original0" in captured.layers[1].parameters


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ModuleList", "Sequential"])
def test_layers_taken_from_slices_of_a_list_keep_their_own_names(kind: str) -> None:
    """A part with two names makes the exporter name each slice."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [Block() for _ in range(4)]
            self.layers = nn.Sequential(*blocks) if kind == "Sequential" else nn.ModuleList(blocks)
            self.also = next(blocks[1].children())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layers[0](x)
            for layer in self.layers[1:-1]:
                x = layer(x)
            return self.layers[-1:][0](x)

    assert layers_of(Sliced()) == ["layers.0", "layers.1", "layers.2", "layers.3", "loss"]
