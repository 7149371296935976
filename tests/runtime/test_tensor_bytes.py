import pytest
import torch
from torch import nn

from autopart.problem import optimizer_bytes
from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.execution.tensor_bytes import most_tensor_bytes

CPU = torch.device("cpu")


def test_what_is_alive_at_once_counts_with_what_was_there_before():
    there, kept = torch.zeros(1000), list[torch.Tensor]()

    def step() -> None:
        kept.append(there + 1)  # 4,000 bytes that stay
        del [torch.zeros(500)][0]  # 2,000 that do not
        kept.append(torch.zeros(100))

    assert most_tensor_bytes(step, [there, there.view(10, 100)], CPU) == 4000 + 4000 + 2000


def test_what_was_set_aside_does_not_count_even_where_it_is_changed():
    aside = torch.zeros(1000)
    assert most_tensor_bytes(lambda: aside.add_(1), [], CPU, aside=[aside]) == 0


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_keeps_what_plans_reckon_with_and_counters_beside_it(
    name: str, dtype: torch.dtype
):
    of = nn.Parameter(torch.ones(1000, dtype=dtype))
    optimizer = Optimizer(name, [of], lr=0.1)
    of.grad = torch.ones_like(of)
    optimizer.step()
    expected = optimizer_bytes(name, str(dtype).removeprefix("torch."))
    assert sum(kept.nbytes for kept in optimizer.state) == 1000 * expected
    assert [counter.ndim for counter in optimizer.counters] == ([0] if name == "adamw" else [])
