"""Split backwards for each kind of operation, in one process."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autopart.runtime.capture.capture import batch_leaves, capture_model
from autopart.runtime.capture.stage_modules import StageProgram, split_stages
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.transforms.split_backward import (
    DeferredWork,
    defer,
    run_deferred,
    split_backwards,
)

Gradients = dict[str, torch.Tensor]


class Addmm(nn.Module):
    """A linear layer with a transposed weight, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Computed(nn.Module):
    """A weight computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.scale * 2)


class Tied(nn.Module):
    """One weight, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(torch.tanh(self.one(x)))


class WrittenInto(nn.Module):
    """A product that is written into, as DeBERTa's attention scales its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x).view(2, 3, 2, 3).permute(0, 2, 1, 3)
        y /= 2.0
        return y


def frozen_bias() -> nn.Module:
    linear = nn.Linear(8, 5)
    linear.bias.requires_grad_(False)
    return linear


def hooked(name: str, *, late: bool = False) -> nn.Module:
    """A linear layer with a hook on a parameter's gradient."""
    linear = nn.Linear(8, 5)
    parameter: nn.Parameter = getattr(linear, name)
    if late:
        parameter.register_post_accumulate_grad_hook(_halve)
    else:
        parameter.register_hook(lambda gradient: gradient * 0.1)
    return linear


def _halve(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad /= 2


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
    "written into": (WrittenInto, (2, 3, 8), 1),
    "computed weight": (Computed, (4, 8), 0),
    "weight with a hook": (lambda: hooked("weight"), (4, 8), 0),
    "bias with a hook": (lambda: hooked("bias"), (4, 8), 0),
    "weight with a late hook": (lambda: hooked("weight", late=True), (4, 8), 0),
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
def test_input_and_weight_halves_give_the_gradients_of_a_whole_backward(name: str):
    model, program, leaves = stage_of(name)
    run(program, leaves)
    whole = gradients_of(model)

    assert split_backwards(program.module) == CASES[name][2]
    run(program, leaves)
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-12, atol=1e-14)

    deferred: list[DeferredWork] = []
    with defer(deferred):
        run(program, leaves)
    assert len(deferred) == CASES[name][2]
    if deferred:
        assert all(p.grad is None for p in model.parameters()), "all weight gradients were deferred"
    run_deferred(deferred)
    assert not any(p.grad is not None and p.grad.requires_grad for p in model.parameters())
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-12, atol=1e-14)


def test_deferred_work_of_several_microbatches_adds_up_in_any_order():
    model, program, leaves = stage_of("linear")
    run(program, leaves)
    whole = {name: 3 * gradient for name, gradient in gradients_of(model).items()}
    split_backwards(program.module)
    deferred: list[DeferredWork] = []
    for _ in range(3):
        with defer(deferred):
            run(program, leaves)
    for place in (1, 1, 0):
        run_deferred([deferred.pop(place)])
    torch.testing.assert_close(gradients_of(model), whole, rtol=1e-12, atol=1e-14)


def test_deferred_work_keeps_no_autograd_graph_and_so_no_received_tensors():
    _, program, leaves = stage_of("two uses")
    split_backwards(program.module)
    deferred: list[DeferredWork] = []
    with defer(deferred):
        run(program, leaves)
    assert [t.grad_fn for work in deferred for t in work.waiting] == [None] * 4


def test_after_a_failed_block_nothing_is_deferred():
    model, program, leaves = stage_of("linear")
    split_backwards(program.module)
    with pytest.raises(ValueError, match="no"), defer([]):
        raise ValueError("no")
    run(program, leaves)
    assert gradients_of(model).keys() == {"model.weight", "model.bias"}


def test_under_autocast_torch_s_own_operation_runs():
    model, program, leaves = stage_of("linear")
    program.module.float()
    leaves = {name: leaf.float() for name, leaf in leaves.items()}
    split_backwards(program.module)
    deferred: list[DeferredWork] = []
    with defer(deferred), torch.autocast("cpu", torch.bfloat16):
        (loss,) = program.module(*(leaves[name] for name in program.inputs))
        loss.backward()
    assert deferred == []
    assert gradients_of(model).keys() == {"model.weight", "model.bias"}
