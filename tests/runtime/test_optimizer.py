from collections.abc import Sequence

import pytest
import torch
from torch import nn

from autopart.runtime.execution.host_link import HostLink, Transit
from autopart.runtime.execution.optimizer import LEARNING_RATES, Optimizer
from autopart.training import MOMENTS
from tests.runtime.on_ranks import shared_and_plain_steps
from tests.runtime.rank_pool import RankPool


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


def test_without_master_copies_parameters_in_16_bits_are_stepped_as_they_are():
    of = parameter(256.0, dtype=torch.bfloat16)
    optimizer = Optimizer("sgd-momentum", [of], 0.1, has_masters=False)
    for _ in range(12):
        of.grad = torch.full_like(of, 0.1)
        optimizer.step()
    assert of.item() == 256.0, "each step is less than half of the last digit"
    assert [tensor.dtype for tensor in optimizer.state] == [torch.bfloat16]
    assert set(optimizer.state_dict({"w": of})) == {"step", "w.momentum_buffer"}


def test_what_is_frozen_or_has_no_gradient_stays():
    frozen, idle = nn.Parameter(torch.ones(1), requires_grad=False), parameter(1.0)
    optimizer = Optimizer("adamw", [frozen, idle], 0.1)
    optimizer.step()
    assert (frozen.item(), idle.item()) == (1.0, 1.0)


def test_a_rank_without_parameters_has_nothing_to_step():
    Optimizer("adamw", [], None).step()


class CountingLink(HostLink):
    """Counts the bytes that go each way."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[str, int]] = []

    def out(self, tensors: Sequence[torch.Tensor]) -> Transit:
        self.moves.append(("out", sum(tensor.nbytes for tensor in tensors)))
        return super().out(tensors)

    def back(self, tensors: Sequence[torch.Tensor]) -> Transit:
        self.moves.append(("back", sum(tensor.nbytes for tensor in tensors)))
        return super().back(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEARNING_RATES)
def test_state_that_waits_on_the_host_steps_to_the_same_bits(name: str, dtype: torch.dtype):
    ours, plain = ([parameter(1.0, -2.0, dtype=dtype), parameter(3.0, dtype=dtype)] for _ in "12")
    link = CountingLink()
    hosted = Optimizer(name, ours, 0.1, hosted=ours[:1], link=link)
    usual = Optimizer(name, plain, 0.1)
    for step in range(3):
        for one, other in zip(ours, plain, strict=True):
            one.grad, other.grad = (torch.full_like(p, step + 0.5) for p in (one, other))
        hosted.step()
        usual.step()
        assert [p.tolist() for p in ours] == [p.tolist() for p in plain]
        assert all(p.grad is None for p in ours)


def test_only_what_is_hosted_leaves_and_it_comes_back_for_each_step():
    here, away = parameter(1.0), parameter(1.0, 2.0, dtype=torch.bfloat16)
    link = CountingLink()
    optimizer = Optimizer("adamw", [here, away], 0.1, hosted=[away], link=link)
    assert link.moves == [("out", 8)], "the master copy in float32"
    for _ in range(2):
        here.grad, away.grad = torch.ones_like(here), torch.ones_like(away)
        optimizer.step()
    # Two moments join the master copy after the first step.
    assert link.moves[1:] == [("back", 8), ("out", 24), ("back", 24), ("out", 24)]
    assert sum(tensor.nbytes for tensor in optimizer.state if tensor.ndim) == 2 * here.nbytes
    assert [buffer.nbytes for buffer in link.buffers] == [8, 8, 8], "they are used again"


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
def test_replicas_that_share_the_state_out_step_to_the_same_bits(two_ranks: RankPool, name: str):
    """Of 3 x 5 + 2 elements one rank steps nine and the other eight, a part of one parameter each."""
    for stepped_elements, ours, plain in two_ranks.call(shared_and_plain_steps, name):
        assert stepped_elements in (9, 8)
        assert ours == plain


def test_replicas_share_state_in_16_bits_and_on_the_host_too(two_ranks: RankPool):
    for _, ours, plain in two_ranks.call(shared_and_plain_steps, "adamw", "bfloat16", True):
        assert ours == plain
