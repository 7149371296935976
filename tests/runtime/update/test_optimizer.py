from collections.abc import Sequence

import pytest
import torch
from torch import nn

from autopart.records.training import MOMENTS
from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.transforms.host_copies import HostCopies, PendingCopies
from autopart.runtime.update.optimizer import LEARNING_RATES, Optimizer
from tests.support.runtime.on_ranks import shared_and_plain_steps
from tests.support.runtime.rank_pool import RankPool


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def stepped(name: str, of: nn.Parameter, gradient: float, steps: int = 1, lr: float = 0.1) -> None:
    optimizer = Optimizer(name, [of], lr)
    for _ in range(steps):
        of.grad = torch.full_like(of, gradient)
        optimizer.step()
        assert of.grad is None


def test_every_optimizer_that_a_plan_can_name_can_run():
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


def test_without_master_copies_the_optimizer_steps_16_bit_parameters_directly():
    of = parameter(256.0, dtype=torch.bfloat16)
    optimizer = Optimizer("sgd-momentum", [of], 0.1, has_masters=False)
    for _ in range(12):
        of.grad = torch.full_like(of, 0.1)
        optimizer.step()
    assert of.item() == 256.0, "each step is less than half of the last digit"
    assert [tensor.dtype for tensor in optimizer.state] == [torch.bfloat16]
    assert set(optimizer.state_dict({"w": of})) == {"step", "w.momentum_buffer"}


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
def test_a_large_parameter_in_16_bits_is_stepped_in_parts(name: str):
    """A float32 gradient exists for an eighth of it at a time; the result is that of one step for all."""
    torch.manual_seed(0)
    size, gradients = 1 << 18, torch.randn(3, 1 << 18, dtype=torch.bfloat16)
    large = nn.Parameter(torch.randn(512, 512, dtype=torch.bfloat16))
    small = [nn.Parameter(part.clone()) for part in large.detach().flatten().split(1 << 13)]
    optimizer, plain = Optimizer(name, [large], 0.1), Optimizer(name, small, 0.1)
    for gradient in gradients:
        large.grad = gradient.view(512, 512).clone()
        for part, own in zip(small, gradient.split(1 << 13), strict=True):
            part.grad = own.clone()
        with LiveStorages() as live:
            for tensor in (large, large.grad, *optimizer.state, *optimizer.counters):
                live.ignore(tensor)
            before = sum(tensor.nbytes for tensor in optimizer.state)
            optimizer.step()
        new_state = sum(tensor.nbytes for tensor in optimizer.state) - before
        assert live.peak_bytes - new_state <= 4 * size / 8 + 100
        plain.step()
        assert torch.equal(large.detach().flatten(), torch.cat([p.detach() for p in small]))
    state = optimizer.state_dict({"large": large})
    assert all(value.shape == large.shape for key, value in state.items() if key != "step")
    again = nn.Parameter(large.detach().clone())
    loaded = Optimizer(name, [again], 0.1)
    loaded.load_state_dict(
        {key.replace("large", "again"): v for key, v in state.items()}, {"again": again}
    )
    for parameter, own in ((large, optimizer), (again, loaded)):
        parameter.grad = gradients[0].view(512, 512).clone()
        own.step()
    assert torch.equal(large, again)


def test_weights_of_a_parameter_in_parts_are_predicted_whole():
    large = nn.Parameter(torch.randn(512, 512, dtype=torch.bfloat16))
    optimizer = Optimizer("sgd-momentum", [large], 0.1)
    large.grad = torch.ones_like(large)
    optimizer.step()
    into = torch.zeros_like(large)
    optimizer.predict(large, 2, into)
    masters = optimizer.state_dict({"large": large})["large.master"]
    assert torch.equal(into, (masters - 2 * 0.1).bfloat16())


def test_parameters_without_a_gradient_and_frozen_ones_do_not_change():
    frozen, idle = nn.Parameter(torch.ones(1), requires_grad=False), parameter(1.0)
    optimizer = Optimizer("adamw", [frozen, idle], 0.1)
    optimizer.step()
    assert (frozen.item(), idle.item()) == (1.0, 1.0)


def test_a_rank_without_parameters_has_nothing_to_step():
    Optimizer("adamw", [], None).step()


class CountingCopies(HostCopies):
    """Records the bytes of each copy and its direction."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[str, int]] = []

    def to_host(self, tensors: Sequence[torch.Tensor]) -> PendingCopies:
        self.moves.append(("to host", sum(tensor.nbytes for tensor in tensors)))
        return super().to_host(tensors)

    def to_device(self, tensors: Sequence[torch.Tensor]) -> PendingCopies:
        self.moves.append(("to device", sum(tensor.nbytes for tensor in tensors)))
        return super().to_device(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEARNING_RATES)
def test_state_in_host_memory_gives_equal_bits(name: str, dtype: torch.dtype):
    ours, plain = ([parameter(1.0, -2.0, dtype=dtype), parameter(3.0, dtype=dtype)] for _ in "12")
    copies = CountingCopies()
    hosted = Optimizer(name, ours, 0.1, hosted=ours[:1], host_copies=copies)
    usual = Optimizer(name, plain, 0.1)
    for step in range(3):
        for one, other in zip(ours, plain, strict=True):
            one.grad, other.grad = (torch.full_like(p, step + 0.5) for p in (one, other))
        hosted.step()
        usual.step()
        assert [p.tolist() for p in ours] == [p.tolist() for p in plain]
        assert all(p.grad is None for p in ours)


def test_only_hosted_state_leaves_the_device_and_returns_for_each_step():
    here, away = parameter(1.0), parameter(1.0, 2.0, dtype=torch.bfloat16)
    copies = CountingCopies()
    optimizer = Optimizer("adamw", [here, away], 0.1, hosted=[away], host_copies=copies)
    assert copies.moves == [("to host", 8)], "the master copy in float32"
    for _ in range(2):
        here.grad, away.grad = torch.ones_like(here), torch.ones_like(away)
        optimizer.step()
    # Two moments join the master copy after the first step.
    assert copies.moves[1:] == [
        ("to device", 8),
        ("to host", 24),
        ("to device", 24),
        ("to host", 24),
    ]
    assert sum(tensor.nbytes for tensor in optimizer.state if tensor.ndim) == 2 * here.nbytes
    assert [buffer.nbytes for buffer in copies.buffers] == [8, 8, 8], "the buffers are reused"


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
def test_zero_sharding_gives_equal_bits(two_ranks: RankPool, name: str):
    """There are 3 x 5 + 2 elements; one rank steps nine, the other eight."""
    for stepped_elements, ours, plain in two_ranks.call(shared_and_plain_steps, name):
        assert stepped_elements in (9, 8)
        assert ours == plain


def test_zero_sharding_works_in_16_bits_and_with_state_on_the_host(two_ranks: RankPool):
    for _, ours, plain in two_ranks.call(shared_and_plain_steps, "adamw", "bfloat16", True):
        assert ours == plain
