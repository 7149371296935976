import pytest
import torch
from torch import nn

from autopart.records.training import make_training, master_bytes, optimizer_bytes
from autopart.runtime.measuring.tensor_bytes import most_tensor_bytes
from autopart.runtime.update.optimizer import Optimizer

CPU = torch.device("cpu")


def test_tensors_alive_at_once_count_with_tensors_from_before():
    there, kept = torch.zeros(1000), list[torch.Tensor]()

    def step() -> None:
        kept.append(there + 1)  # 4,000 bytes that stay alive
        del [torch.zeros(500)][0]  # 2,000 bytes that do not
        kept.append(torch.zeros(100))

    assert most_tensor_bytes(step, [there, there.view(10, 100)], CPU) == 4000 + 4000 + 2000


def test_excluded_tensors_do_not_count_even_where_they_change():
    aside = torch.zeros(1000)
    assert most_tensor_bytes(lambda: aside.add_(1), [], CPU, excluded=[aside]) == 0


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_keeps_the_planned_bytes_and_counters_beside_them(
    name: str, dtype: torch.dtype
):
    of = nn.Parameter(torch.ones(1000, dtype=dtype))
    optimizer = Optimizer(name, [of], lr=0.1)
    of.grad = torch.ones_like(of)
    optimizer.step()
    training = make_training(str(dtype).removeprefix("torch."), name)
    expected = optimizer_bytes(training) + master_bytes(training)
    assert sum(kept.nbytes for kept in optimizer.state) == 1000 * expected
    assert [counter.ndim for counter in optimizer.counters] == ([0] if name == "adamw" else [])


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
def test_a_step_on_16_bit_weights_needs_few_bytes_beyond_its_state(name: str):
    weights = [nn.Parameter(torch.ones(250_000, dtype=torch.bfloat16)) for _ in range(20)]
    optimizer = Optimizer(name, weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    there = (*weights, *gradients, *optimizer.state)
    most = most_tensor_bytes(optimizer.step, there, CPU, excluded=optimizer.counters)
    assert most < 1.25 * sum(tensor.nbytes for tensor in there)
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
def test_a_step_in_float32_needs_no_further_bytes(name: str):
    weight = nn.Parameter(torch.ones(250_000))
    optimizer = Optimizer(name, [weight], lr=0.1)
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        there = (weight, weight.grad, *optimizer.state)
        most = most_tensor_bytes(optimizer.step, there, CPU, excluded=optimizer.counters)
    assert most == sum(tensor.nbytes for tensor in there)


def test_steps_in_parts_are_the_steps_of_the_whole():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(300_000).bfloat16()) for _ in range(5)]
    plain = [nn.Parameter(p.detach().float()) for p in ours]
    gradients = [torch.randn_like(p) for p in ours]
    mine, theirs = Optimizer("adamw", ours, lr=0.1), torch.optim.AdamW(plain, lr=0.1, fused=True)
    for _ in range(3):
        for one, other, gradient in zip(ours, plain, gradients, strict=True):
            one.grad, other.grad = gradient.clone(), gradient.float()
        mine.step()
        theirs.step()
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other.bfloat16())
