import pytest
import torch
from torch import nn

from autopart.runtime.execution.optimizer import LEARNING_RATES, Optimizer
from autopart.training import MOMENTS


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def stepped(name: str, of: nn.Parameter, gradient: float, steps: int = 1, lr: float = 0.1) -> None:
    optimizer = Optimizer(name, [of], lr)
    for _ in range(steps):
        of.grad = torch.full_like(of, gradient)
        optimizer.step()
        assert of.grad is None


def test_every_optimizer_that_a_plan_is_reckoned_for_can_be_run():
    assert LEARNING_RATES.keys() == MOMENTS.keys()


def test_sgd_goes_down_the_gradient():
    of = parameter(1.0)
    stepped("sgd", of, gradient=2.0)
    assert of.item() == pytest.approx(0.8)


def test_momentum_adds_up():
    of = parameter(1.0)
    stepped("sgd-momentum", of, gradient=1.0, steps=2)
    assert of.item() == pytest.approx(1.0 - 0.1 - 0.19)


def test_adamw_takes_one_learning_rate_whatever_the_gradient_s_size():
    of = parameter(0.0)
    stepped("adamw", of, gradient=1e-3)
    assert of.item() == pytest.approx(-0.1, rel=1e-3)


def test_steps_too_small_for_16_bits_add_up_in_the_master_copy():
    of = parameter(256.0, dtype=torch.bfloat16)
    stepped("sgd", of, gradient=1.0, steps=4)
    assert of.item() == 256.0, "the nearest number below is 255, and 255.6 is nearer to 256"
    stepped_on = parameter(256.0, dtype=torch.bfloat16)
    stepped("sgd", stepped_on, gradient=1.0, steps=12)
    assert stepped_on.item() == 255.0


def test_what_is_frozen_or_has_no_gradient_stays():
    frozen, idle = nn.Parameter(torch.ones(1), requires_grad=False), parameter(1.0)
    optimizer = Optimizer("adamw", [frozen, idle], 0.1)
    optimizer.step()
    assert (frozen.item(), idle.item()) == (1.0, 1.0)


def test_a_rank_without_parameters_has_nothing_to_step():
    Optimizer("adamw", [], None).step()
