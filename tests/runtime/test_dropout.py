import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.execution.dropout import DropNothing, drop_nothing, random_operations
from autopart.runtime.models.model import TrainingModel

X = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)


class Positional(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.dropout(F.dropout(x, 0.5, self.training), 0.5, self.training)


class First(nn.Module):
    """The first of a module's outputs."""

    def __init__(self, inner: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(*([x] * self.times))[0]


MODELS = {
    "dropout": nn.Dropout(0.5),
    "channels": nn.Dropout1d(0.5),
    "alpha": nn.AlphaDropout(0.5),
    "feature alpha": nn.FeatureAlphaDropout(0.5),
    "in place": nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5, inplace=True)),
    "attention": Attention(),
    "positional": Positional(),
    "multi-head": First(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), times=3),
    "encoder layer": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
    "lstm": First(nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)),
    "gru": First(nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)),
}


def without(model: nn.Module) -> torch.Tensor:
    """What the model gives where it drops nothing by its own account."""
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


def test_other_random_operations_are_listed():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.linear(x), 0.5) + torch.rand_like(x)

    training = TrainingModel(Noisy(), lambda output, target: output.sum())
    captured = capture_model(training, ((X,), None))
    assert random_operations(captured.module) == ("aten.rand_like.default",)
