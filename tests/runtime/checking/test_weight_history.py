"""The plain model's predictions against recurrences by hand."""

import pytest
import torch
from torch import nn

from autopart.runtime.checking.plain_optimizer import PlainOptimizer
from autopart.runtime.checking.reference_run import run_reference
from autopart.runtime.checking.weight_history import Guess, Guesses, PredictionHistory

LR, MOMENTUM, N = 0.1, 0.9, 2


class Product(nn.Module):
    """The loss a b x of two weights: the gradient of each is the other one in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, 2.0))

    def forward(self, inputs: tuple[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return self.a * self.b * inputs[0]


def guessed(at: list[tuple[float, float]], guess: Guess) -> float:
    """W - s lr v, from the weight and the velocity of each version."""
    weight, velocity = at[guess.version]
    return weight - guess.distance * LR * velocity


def test_forward_and_backward_run_with_their_own_predictions():
    late, far = {"a": 1, "b": 0}, {"a": (3, 1), "b": (2, 0)}
    prediction = Guesses(
        lambda name, m: Guess(max(0, m // N - late[name]), far[name][0]),
        lambda name, m: Guess(m // N, far[name][1]),
    )
    xs = [0.5, -0.25, 0.75, 0.3, -0.6, 0.2, 0.1, 0.4]
    reference = run_reference(
        Product(),  # type: ignore[arg-type]
        lambda step, m: ((torch.tensor(xs[step * N + m], dtype=torch.float64),), torch.zeros(())),
        steps=4,
        num_microbatches=N,
        optimizer=lambda ps: PlainOptimizer("sgd-momentum", ps, LR, has_masters=False),
        note=lambda text: None,
        history=lambda ps, stepper: PredictionHistory(ps, stepper.stepped, prediction),
    )
    # A velocity of 0 stands for no velocity yet.
    at = {"a": [(1.0, 0.0)], "b": [(2.0, 0.0)]}
    for update in range(4):
        grad, loss = {"a": 0.0, "b": 0.0}, 0.0
        for m in range(update * N, update * N + N):
            forward = {name: guessed(at[name], prediction.forward(name, m)) for name in at}
            backward = {name: guessed(at[name], prediction.backward(name, m)) for name in at}
            loss += forward["a"] * forward["b"] * xs[m] / N
            grad["a"] += backward["b"] * xs[m] / N
            grad["b"] += backward["a"] * xs[m] / N
        assert reference.losses[update] == pytest.approx(loss, rel=1e-12)
        for name, past in at.items():
            weight, velocity = past[-1]
            velocity = MOMENTUM * velocity + grad[name]
            past.append((weight - LR * velocity, velocity))
    assert reference.last["a"].item() == pytest.approx(at["a"][-1][0], rel=1e-13)
    assert reference.last["b"].item() == pytest.approx(at["b"][-1][0], rel=1e-13)
