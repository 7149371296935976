"""Stages that run one after another in this process, as in a pipeline, but without processes."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from autopart.runtime.capture.capture import Captured, batch_leaves
from autopart.runtime.capture.stage_modules import StageProgram, split_layers, split_stages
from autopart.runtime.models.model import TrainingModel

Leaves = Mapping[str, torch.Tensor]
Step = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Loss, gradients by parameter, and buffers after the step."""


def plain_step(model: TrainingModel, batch: tuple[Any, Any], *, seed: int = 0) -> Step:
    """Run one step of the user's own model. The model and the batch stay unchanged."""
    plain, batch = copy.deepcopy((model, batch))
    torch.manual_seed(seed)
    loss = plain(*batch)
    loss.backward()
    return loss.detach(), _gradients(plain.model), _buffers(plain.model)


def stages_step(
    model: TrainingModel,
    captured: Captured,
    batch: tuple[Any, Any],
    stages: Sequence[Sequence[str]] | None = None,
    *,
    seed: int = 0,
) -> Step:
    """Run one step of stages, each layer alone by default. Buffers are restored."""
    before = {name: buffer.clone() for name, buffer in model.model.named_buffers()}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    leaves = batch_leaves(captured, batch)
    if stages is None:
        loss = _run_layers(split_layers(captured), leaves)
    else:
        loss = _run_chain(split_stages(captured, stages), leaves)
    result = loss, _gradients(model.model), _buffers(model.model)
    for name, buffer in model.model.named_buffers():
        buffer.copy_(before[name])
    model.zero_grad(set_to_none=True)
    return result


def assert_same_step(plain: Step, stages: Step, tolerance: float) -> None:
    """Check that loss, gradients and buffers agree up to `tolerance` of the largest element.

    Some gradients are zero except for rounding (a bias before a norm). They agree up to a hundredth
    of `tolerance` times the largest gradient of all.
    """
    assert plain[1].keys() == stages[1].keys()
    assert plain[2].keys() == stages[2].keys()
    least = max((_largest(gradient) for gradient in plain[1].values()), default=0.0) / 100
    pairs = [("loss", plain[0], stages[0], 0.0)]
    pairs += [(name, plain[1][name], stages[1][name], least) for name in plain[1]]
    pairs += [(name, plain[2][name], stages[2][name], 0.0) for name in plain[2]]
    for name, one, two, floor in pairs:
        scale = max(_largest(one), floor, 1e-12)
        error = _largest(one - two) / scale
        assert error <= tolerance, f"{name} differs by {error:.3g} of its largest element"


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def random_cuts(captured: Captured, num_stages: int, seed: int) -> list[list[str]]:
    """Cut the layers, in order, at random places."""
    generator = torch.Generator().manual_seed(seed)
    names = [layer.name for layer in captured.layers]
    places = torch.randperm(len(names) - 1, generator=generator)[: num_stages - 1] + 1
    bounds = [0, *sorted(places.tolist()), len(names)]
    return [names[a:b] for a, b in pairwise(bounds)]


def _run_chain(programs: Sequence[StageProgram], leaves: Leaves) -> torch.Tensor:
    ran: list[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = []
    outputs: tuple[torch.Tensor, ...] = ()
    for previous, program in zip((None, *programs), programs, strict=False):
        if previous is not None:
            assert program.received == previous.outputs
            assert program.received_meta == previous.output_meta
        received = tuple(out.detach().clone().requires_grad_(out.requires_grad) for out in outputs)
        outputs = _forward(program, received, leaves)
        ran.append((received, outputs))
    (loss,) = outputs
    gradients: tuple[torch.Tensor, ...] = (torch.ones_like(loss),)
    for received, outputs in reversed(ran):
        _backward(outputs, gradients)
        gradients = tuple(tensor.grad for tensor in received if tensor.requires_grad)
    return loss.detach()


def _run_layers(programs: Sequence[StageProgram], leaves: Leaves) -> torch.Tensor:
    made: dict[str, torch.Tensor] = {}
    ran: list[tuple[StageProgram, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = []
    for program in programs:
        received = tuple(
            made[name].detach().clone().requires_grad_(made[name].requires_grad)
            for name in program.received
        )
        outputs = _forward(program, received, leaves)
        made.update(zip(program.outputs, outputs, strict=True))
        ran.append((program, received, outputs))
    gradients: dict[str, torch.Tensor] = {"loss": torch.ones_like(made["loss"])}
    for program, received, outputs in reversed(ran):
        _backward(
            outputs,
            [
                gradients[n]
                for n, o in zip(program.outputs, outputs, strict=True)
                if o.requires_grad
            ],
        )
        for name, tensor in zip(program.received, received, strict=True):
            if tensor.requires_grad:
                assert tensor.grad is not None, f"no gradient flows back through '{name}'"
                gradients[name] = gradients.get(name, torch.zeros_like(tensor)) + tensor.grad
    return made["loss"].detach()


def _forward(
    program: StageProgram, received: Sequence[torch.Tensor], leaves: Leaves
) -> tuple[torch.Tensor, ...]:
    for tensor, meta in zip(received, program.received_meta, strict=True):
        assert (tuple(tensor.shape), tensor.dtype, tensor.requires_grad) == (
            meta.shape,
            meta.dtype,
            meta.requires_grad,
        )
    outputs = program.module(*received, *(leaves[name] for name in program.inputs))
    assert len(outputs) == len(program.outputs)
    for name, tensor, meta in zip(program.outputs, outputs, program.output_meta, strict=True):
        assert tuple(tensor.shape) == meta.shape and tensor.dtype == meta.dtype, name
        assert tensor.requires_grad == meta.requires_grad, name
        assert tensor.is_contiguous() and not tensor._is_view(), name
    return outputs


def _backward(outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
    trained = [tensor for tensor in outputs if tensor.requires_grad]
    assert len(trained) == len(gradients)
    assert all(gradient is not None for gradient in gradients)
    if trained:
        torch.autograd.backward(trained, list(gradients))


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}
