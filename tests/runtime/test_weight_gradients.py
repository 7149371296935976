"""The two halves of a backward, operation by operation, in one process."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autopart.runtime.capture.capture import batch_leaves, capture_model
from autopart.runtime.capture.split import StageProgram, split_stages
from autopart.runtime.execution.weight_gradients import Deed, put_off, run_put_off, split_backwards
from autopart.runtime.models.model import TrainingModel

Gradients = dict[str, torch.Tensor]


class Addmm(nn.Module):
    """A linear layer with its weight the other way round, as GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Computed(nn.Module):
    """A weight that is no parameter but made of one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.scale * 2)


class Tied(nn.Module):
    """One weight, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(torch.tanh(self.one(x)))


def frozen_bias() -> nn.Module:
    linear = nn.Linear(8, 5)
    linear.bias.requires_grad_(False)
    return linear


IDS = torch.randint(0, 9, (4, 3), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | torch.Tensor, int]] = {
    "linear": (lambda: nn.Linear(8, 5), (2, 3, 8), 1),
    "linear without bias": (lambda: nn.Linear(8, 5, bias=False), (4, 8), 1),
    "linear with a frozen bias": (frozen_bias, (4, 8), 1),
    "addmm": (Addmm, (4, 8), 1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 9), 1),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, stride=2, dilation=2), (2, 3, 9, 9), 1),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 4), 1),
    "embedding": (lambda: nn.Embedding(9, 5, padding_idx=0), IDS, 1),
    "two uses": (Tied, (4, 8), 2),
    "computed weight": (Computed, (4, 8), 0),
    "unbatched conv": (lambda: nn.Conv2d(3, 6, 3), (3, 9, 9), 0),
}


def stage_of(name: str) -> tuple[TrainingModel, StageProgram, dict[str, torch.Tensor]]:
    build, given, _ = CASES[name]
    torch.manual_seed(0)
    inputs = given if isinstance(given, torch.Tensor) else torch.randn(given)
    model = TrainingModel(build(), lambda output, _: output.square().mean()).double()
    batch = ((inputs.double() if inputs.is_floating_point() else inputs,), None)
    captured = capture_model(model, batch)
    (program,) = split_stages(captured, [[layer.name for layer in captured.layers]])
    return model, program, batch_leaves(captured, batch)


def gradients_of(model: nn.Module) -> Gradients:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def run(program: StageProgram, leaves: dict[str, torch.Tensor]) -> None:
    (loss,) = program.module(*(leaves[name] for name in program.inputs))
    loss.backward()


@pytest.mark.parametrize("name", CASES)
def test_both_halves_make_the_gradients_of_the_whole(name: str):
    model, program, leaves = stage_of(name)
    run(program, leaves)
    whole = gradients_of(model)

    assert split_backwards(program.module) == CASES[name][2]
    run(program, leaves)
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-12, atol=1e-14)

    deeds: list[Deed] = []
    with put_off(deeds):
        run(program, leaves)
    assert len(deeds) == CASES[name][2]
    if deeds:
        assert all(p.grad is None for p in model.parameters()), "all of it was put off"
    run_put_off(deeds)
    assert not any(p.grad is not None and p.grad.requires_grad for p in model.parameters())
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-12, atol=1e-14)


def test_halves_of_several_microbatches_add_up_in_any_order():
    model, program, leaves = stage_of("linear")
    run(program, leaves)
    whole = {name: 3 * gradient for name, gradient in gradients_of(model).items()}
    split_backwards(program.module)
    deeds: list[Deed] = []
    for _ in range(3):
        with put_off(deeds):
            run(program, leaves)
    for place in (1, 1, 0):
        run_put_off([deeds.pop(place)])
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-12, atol=1e-14)


def test_what_waits_holds_no_graph_and_so_nothing_that_the_stage_received():
    _, program, leaves = stage_of("two uses")
    split_backwards(program.module)
    deeds: list[Deed] = []
    with put_off(deeds):
        run(program, leaves)
    assert [t.grad_fn for deed in deeds for t in deed.waiting] == [None] * 4


def test_after_a_block_that_failed_nothing_is_put_off():
    model, program, leaves = stage_of("linear")
    split_backwards(program.module)
    with pytest.raises(ValueError, match="no"), put_off([]):
        raise ValueError("no")
    run(program, leaves)
    assert gradients_of(model).keys() == {"model.weight", "model.bias"}


def test_autocast_keeps_to_torch_s_own_operation():
    model, program, leaves = stage_of("linear")
    program.module.float()
    leaves = {name: leaf.float() for name, leaf in leaves.items()}
    split_backwards(program.module)
    deeds: list[Deed] = []
    with put_off(deeds), torch.autocast("cpu", torch.bfloat16):
        (loss,) = program.module(*(leaves[name] for name in program.inputs))
        loss.backward()
    assert deeds == []
    assert gradients_of(model).keys() == {"model.weight", "model.bias"}
