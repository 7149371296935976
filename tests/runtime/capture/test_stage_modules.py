"""Stages that run one after another compute the plain model's results."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from autopart.errors import PlanError
from autopart.runtime.capture.capture import Captured, batch_leaves, capture_model
from autopart.runtime.capture.stage_modules import port, split_layers, split_stages
from autopart.runtime.models.model import TrainingModel
from tests.support.runtime.hugging_face import captured_hugging_face
from tests.support.runtime.small_models import (
    WIDTH,
    Batch,
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
    square_loss,
    training,
)
from tests.support.runtime.stage_chain import assert_same_step, plain_step, random_cuts, stages_step
from tests.support.seeds import seeds

FLOAT32, FLOAT64 = 1e-6, 1e-12


def check_cuts(
    model: TrainingModel, example: Batch, tolerance: float, cuts: Sequence[int] = (2, 3, 4)
) -> Captured:
    """Check that single layers, and stages cut at random places, agree with the plain model."""
    captured = capture_model(model, example)
    check_captured(captured, model, example, tolerance, cuts)
    return captured


def check_captured(
    captured: Captured,
    model: TrainingModel,
    example: Batch,
    tolerance: float,
    cuts: Sequence[int] = (2, 3, 4),
) -> None:
    plain = plain_step(model, example)
    assert_same_step(plain, stages_step(model, captured, example), tolerance)
    for seed, num_stages in enumerate(cuts):
        stages = random_cuts(captured, min(num_stages, len(captured.layers)), seed)
        assert_same_step(plain, stages_step(model, captured, example, stages), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_hugging_face_models_keep_their_loss_and_every_gradient(name: str) -> None:
    model, example, captured = captured_hugging_face(name)
    check_captured(captured, model, example, FLOAT32)


class Attentive(nn.Module):
    """Torch's own encoder layer and a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, (state, _) = self.recurrent(self.encoder(x))
        return x + state[-1][:, None]


class InPlaceGlue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([linear() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        first = self.blocks[0](x)
        second = self.blocks[1](first)
        second += first
        third = self.blocks[2](second.clone())
        third.view(-1)[::2].mul_(3)
        return self.blocks[3](third)


class Averaging(nn.Module):
    """Replaces a buffer instead of writing into it, after autograd has saved the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.register_buffer("average", torch.ones(WIDTH))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x) * self.average
        self.average = 0.9 * self.average + y.detach().mean(0)
        self.steps += 1
        return y + self.average


class Gated(nn.Module):
    """Integers, booleans and a detached tensor go from one layer to another."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList([linear() for _ in range(3)])
        self.head = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.router(x)
        chosen, confident = scores.argmax(-1), (scores > 0).any(-1, keepdim=True)
        for place, block in enumerate(self.blocks):
            x = torch.where((chosen == place)[:, None] & confident, block(x), x)
        return self.head(x) * scores.detach().exp().sum(-1, keepdim=True)


class Probing(nn.Module):
    """A frozen encoder under no_grad, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Blocks(Block(), Block()), linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.encoder(x)
        return self.head(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: Blocks(Block(), Block(), Block()),
        SkipNet,
        lambda: Blocks(Experts(), Experts()),
        InPlaceGlue,
        lambda: Blocks(Averaging(), Block(), Averaging()),
        Gated,
        Probing,
        lambda: nn.Sequential(linear(), nn.ReLU(inplace=True), linear(), nn.Sigmoid()),
        lambda: Blocks(*[nn.utils.parametrizations.spectral_norm(linear()) for _ in range(2)]),
    ],
    ids=["blocks", "skips", "experts", "in-place", "buffers", "integers", "frozen", "relu", "norm"],
)
def test_awkward_models_keep_their_loss_gradients_and_buffers(
    build: Callable[[], nn.Module],
) -> None:
    check_cuts(training(build()), batch(), FLOAT64)


@pytest.mark.slow
def test_attention_and_recurrence_keep_their_loss_and_gradients() -> None:
    check_cuts(training(Attentive()), batch(3, 5, WIDTH), FLOAT64)


@pytest.mark.slow
def test_batch_norms_buffers_are_updated_as_in_the_plain_model() -> None:
    captured = check_cuts(training(ResNet()), batch(2, 3, 4, 4), FLOAT64)
    assert captured.layers[1].buffers == (
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    )


@pytest.mark.slow
def test_tied_weights_masks_and_keyword_inputs_survive_every_cut() -> None:
    check_cuts(training(TiedDecoder(), decoder_loss), decoder_batch(), FLOAT64, (2, 3, 4, 5, 6))


@pytest.mark.slow
def test_a_module_called_twice_survives_every_cut() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.out = Block(), linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.block(self.block(x)) + self.block(x))

    check_cuts(training(Twice()), batch(), FLOAT64, (2, 3, 4, 5))


@pytest.mark.slow
def test_autocast_inside_the_model_survives_every_cut() -> None:
    class Mixed(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    model = training(Mixed(Block(), Block()), double=False)
    check_cuts(model, ((batch()[0][0].float(),), None), FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(2, 6))
def test_random_networks_survive_random_cuts(seed: int) -> None:
    model = RandomNet(seed)
    check_cuts(training(model), batch(), FLOAT64, (2, 3, 4, 5, 6))


class RandomNet(nn.Module):
    """Modules of all kinds in a row, each fed by the sum of some earlier results."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kinds: list[Callable[[], nn.Module]] = [
            Block,
            linear,
            lambda: nn.BatchNorm1d(WIDTH),
            lambda: nn.ReLU(inplace=True),
            nn.Tanh,
            Experts,
            Averaging,
        ]
        draws = torch.randint(len(kinds), (9,), generator=generator).tolist()
        self.parts = nn.ModuleList([linear(), *(kinds[draw]() for draw in draws)])
        self.sources = [
            torch.randint(place + 1, (2,), generator=generator).tolist()
            for place in range(len(self.parts))
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [self.parts[0](x)]
        for part, sources in zip(self.parts[1:], self.sources, strict=False):
            made.append(part(made[-1] + sum(made[source] for source in set(sources))))
        return made[-1]


@pytest.mark.slow
def test_a_value_needed_further_on_passes_through_the_stages_between() -> None:
    captured = capture_model(training(SkipNet()), batch())
    names = [layer.name for layer in captured.layers]
    programs = split_stages(captured, [[name] for name in names[:-1]] + [names[-1:]])
    skip = next(v.name for v in captured.values if v.consumers == ("down.1", "up.1"))
    first, last = names.index("down.0"), names.index("up.1")
    carrying = [
        place for place, p in enumerate(programs) if skip in p.received or skip in p.outputs
    ]
    assert carrying == list(range(first, last + 1))


@pytest.mark.slow
def test_a_layer_alone_receives_and_returns_exactly_its_values() -> None:
    captured = capture_model(training(SkipNet()), batch())
    for layer, program in zip(captured.layers, split_layers(captured), strict=True):
        assert program.received == tuple(
            v.name for v in captured.values if layer.name in v.consumers
        )
        made = tuple(v.name for v in captured.values if v.producer == layer.name)
        assert program.outputs == (made if layer.name != "loss" else ("loss",))
        assert program.parameters == layer.parameters


@pytest.mark.slow
def test_stages_have_the_models_own_parameters_and_buffers_under_its_names() -> None:
    model = training(ResNet())
    captured = capture_model(model, batch(2, 3, 4, 4))
    first, second = split_stages(
        captured, [["conv1", "bn1", "layer1.0"], ["layer1.1", "fc", "loss"]]
    )
    parameters, buffers = dict(model.model.named_parameters()), dict(model.model.named_buffers())
    found = {**dict(first.module.named_parameters()), **dict(second.module.named_parameters())}
    assert found.keys() == parameters.keys() == {*first.parameters, *second.parameters}
    assert all(found[name] is parameters[name] for name in found)
    found = {**dict(first.module.named_buffers()), **dict(second.module.named_buffers())}
    assert found.keys() == buffers.keys() == {*first.buffers, *second.buffers}
    assert all(found[name] is buffers[name] for name in found)
    states = {**first.module.state_dict(), **second.module.state_dict()}
    assert states.keys() == model.model.state_dict().keys()


def test_a_buffer_outside_of_the_state_dict_stays_outside_of_it() -> None:
    captured = capture_model(training(Blocks(Averaging())), batch())
    (stage,) = split_stages(captured, [[layer.name for layer in captured.layers]])
    assert "blocks.0.average" in stage.module.state_dict()
    assert "blocks.0.steps" not in stage.module.state_dict()


@pytest.mark.slow
def test_layers_may_be_in_any_order_within_a_stage_and_branches_on_any_stage() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = Block(), Block()
            self.out = nn.Bilinear(WIDTH, WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.left(x), self.right(x))

    model = training(Branches())
    captured = capture_model(model, batch())
    plain = plain_step(model, batch())
    for stages in (
        [["right"], ["left"], ["loss", "out"]],
        [["loss", "out", "right", "left"]],
    ):
        assert_same_step(plain, stages_step(model, captured, batch(), stages), FLOAT64)


def test_the_loss_reaches_the_last_stage_even_if_another_stage_makes_it() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.watch = linear(), nn.BatchNorm1d(WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            self.watch(x.detach())
            return x

    model = training(Counting())
    captured = capture_model(model, batch())
    stages = [["body"], ["loss"], ["watch"]]
    plain = plain_step(model, batch())
    assert_same_step(plain, stages_step(model, captured, batch(), stages), FLOAT64)


def test_a_loss_keeps_only_its_own_number_alive() -> None:
    """On a CPU torch's mse_loss returns a number inside the storage of all differences."""
    model = TrainingModel(nn.Linear(20, 30), nn.functional.mse_loss)
    batch = ((torch.randn(4, 20),), torch.randn(4, 30))
    captured = capture_model(model, batch)
    (program,) = split_stages(captured, [[layer.name for layer in captured.layers]])
    leaves = batch_leaves(captured, batch)
    (loss,) = program.module(*(leaves[name] for name in program.inputs))
    assert loss.untyped_storage().nbytes() == loss.element_size()


def test_a_port_is_an_identity_with_contiguous_tensors_in_both_directions() -> None:
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    out = port(x.t())
    assert out.is_contiguous() and not out._is_view() and torch.equal(out, x.t())
    assert port(x).data_ptr() == x.data_ptr()
    seen: list[bool] = []
    y = x * 1
    y.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
    port(y).backward(torch.ones(3, 2).t())
    assert seen == [True] and torch.equal(x.grad, torch.ones(2, 3))  # pyright: ignore


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stages"),
        ([["first"], [], ["blocks.0", "last", "loss"]], "stage 1 has no layers"),
        (["first", "loss"], "stage 0 is the text 'first'"),
        ([["first", "blocks.7"], ["last"]], "stage 0 has layer 'blocks.7', which the model does"),
        (
            [["first", "blocks.0"], ["first", "last", "loss"]],
            "'first' is in stage 0 and in stage 1",
        ),
        ([["first"], ["last", "loss"]], "1 layer of the model is in no stage: blocks.0"),
        (
            [["blocks.0"], ["first", "last", "loss"]],
            "'blocks.0' in stage 0 needs 'linear' of layer",
        ),
    ],
    ids=["none", "empty", "text", "unknown", "twice", "missing", "backward"],
)
def test_stages_that_are_no_partition_are_refused(
    stages: Sequence[Sequence[str]], message: str
) -> None:
    captured = capture_model(training(Blocks(Block())), batch())
    with pytest.raises(PlanError, match=message):
        split_stages(captured, stages)


@pytest.mark.slow
def test_dropout_draws_the_plain_models_numbers_from_the_same_seed() -> None:
    model = training(Blocks(Block(dropout=0.5), Block(dropout=0.5)), square_loss)
    check_cuts(model, batch(), FLOAT64)
