import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.checking.dropout import DropNothing, drop_nothing, may_draw_numbers
from autopart.runtime.models.model import TrainingModel

X = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


class First(nn.Module):
    """Returns a module's first output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


MODELS = {
    "lstm": First(nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)),
    "gru": First(nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)),
    "rnn": First(nn.RNN(8, 8, num_layers=2, dropout=0.5, batch_first=True)),
}


def without(model: nn.Module) -> torch.Tensor:
    """The model's output in eval mode, where it drops nothing."""
    with torch.no_grad():
        output = model.eval()(X)
    model.train()
    return output


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_model_drops_nothing_in_the_mode(name: str):
    model = MODELS[name].train()
    expected = without(model)
    assert not torch.allclose(model(X.clone()), expected)
    with DropNothing():
        found = model(X.clone())
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_captured_graph_drops_nothing_afterwards(name: str):
    model = nn.Sequential(nn.Linear(8, 8), MODELS[name], nn.Linear(8, 8))
    expected = without(model)
    training = TrainingModel(model, lambda output, target: ((output - target) ** 2).sum())
    captured = capture_model(training, ((X.clone(),), expected))
    assert drop_nothing(captured.module) > 0
    loss = captured.module(X.clone(), expected)
    assert loss.item() < 1e-9
    assert drop_nothing(captured.module) == 0


class Noisy(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.linear, self.p = nn.Linear(8, 8), p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.linear(x), self.p)


class Branching(nn.Module):
    """No graph can contain its branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "may"),
    [
        (Noisy(0.5), True),
        (Noisy(0.0), False),
        (nn.Sequential(nn.Linear(8, 8), Branching()), True),
    ],
    ids=["dropout", "dropout of 0", "user code"],
)
def test_a_captured_graph_tells_whether_it_may_draw_numbers(model: nn.Module, may: bool):
    training = TrainingModel(model, lambda output, target: output.sum())
    captured = capture_model(training, ((X,), None))
    assert may_draw_numbers(captured.module) == may
