"""Predicted weights continue the optimizer's last change."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autopart.errors import UsageError
from autopart.runtime.update import weight_prediction
from autopart.runtime.update.optimizer import Optimizer
from autopart.runtime.update.weight_prediction import WeightPrediction

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
KNOWN: dict[str, Make] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "damped momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.8),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
}
UNKNOWN: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "maximize": lambda p: torch.optim.Adam(p, maximize=True),
}


def tensors() -> list[nn.Parameter]:
    """Parameters of many shapes: a number, a matrix, a transposed one, complex numbers."""
    torch.manual_seed(0)
    shapes = [torch.randn(()), torch.randn(7, 3), torch.randn(5, 4).t()]
    return [nn.Parameter(t.double()) for t in shapes]


def stepped(stepper: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """The weights before a step on random gradients."""
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    stepper.step()
    return before


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("piece", [2, 1 << 18])
def test_each_further_update_repeats_the_last_change(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weight_prediction, "_PIECE", piece)
    parameters = tensors()
    stepper = KNOWN[name](parameters)
    prediction = WeightPrediction(stepper)
    for number in range(3):
        before = stepped(stepper, parameters)
        for parameter, earlier in zip(parameters, before, strict=True):
            for updates in (0, 1, 3):
                guess = torch.full_like(parameter, torch.nan).detach()
                prediction.weights(parameter, updates, guess)
                now = parameter.detach()
                assert torch.allclose(guess, now + updates * (now - earlier), rtol=0, atol=1e-13)
        assert number < 3


def test_weights_stay_before_the_first_update_and_decay_is_left_out():
    (parameter,) = own = [nn.Parameter(torch.full((2,), 4.0, dtype=torch.float64))]
    stepper = torch.optim.AdamW(own, lr=0.5, weight_decay=0.1)
    prediction, guess = WeightPrediction(stepper), torch.empty(2, dtype=torch.float64)
    prediction.weights(parameter, 3, guess)
    assert guess.tolist() == [4.0, 4.0]
    parameter.grad = torch.full_like(parameter, 2.0)
    stepper.step()
    # The decay took 0.1 * 0.5 * 4 and the first update of Adam its learning rate.
    assert parameter.tolist() == pytest.approx([4.0 - 0.2 - 0.5] * 2)
    prediction.weights(parameter, 2, guess)
    assert guess.tolist() == pytest.approx([4.0 - 0.2 - 0.5 - 2 * 0.5] * 2)


def test_master_copies_predict_weights_in_16_bits():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer, guess = Optimizer("sgd-momentum", [parameter], 1e-3), torch.empty_like(parameter)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert parameter.tolist() == [1.0] * 3  # 0.999 is nearer to 1 than to the next number below.
    optimizer.predict(parameter, 3, guess.detach())
    assert guess.tolist() == [0.99609375] * 3  # The number nearest to 0.996.


@pytest.mark.parametrize("name", UNKNOWN)
def test_optimizers_whose_next_update_is_not_known_are_refused(name: str):
    with pytest.raises(
        UsageError, match=r"weights cannot be predicted from the state of .*; take SGD"
    ):
        WeightPrediction(UNKNOWN[name](tensors()))
