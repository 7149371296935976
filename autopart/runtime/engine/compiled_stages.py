"""Compiles a rank's stages before its first step, so that no step waits for the compiler."""

from collections.abc import Iterable

import torch

from autopart.runtime.capture.autocast import entered
from autopart.runtime.capture.stage_modules import StageProgram, TensorMeta
from autopart.runtime.engine.stage import Leaves, stage_buffers
from autopart.runtime.transforms.compiled_segments import check_compiler, compile_segments


def compile_stages(programs: Iterable[StageProgram], leaves: Leaves, device: torch.device) -> None:
    """Compile each stage in place, and run it once forward and backward on random received tensors.

    `leaves` are one microbatch's tensors. Buffers, gradients and random state stay unchanged.
    Raises UsageError without a compiler.
    """
    check_compiler(device)
    for program in programs:
        compile_segments(program.module)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _run_once(program, leaves, device)


def _run_once(program: StageProgram, leaves: Leaves, device: torch.device) -> None:
    kept = [(buffer, buffer.clone()) for buffer in stage_buffers(program).values()]
    parameters = list(program.module.parameters())
    gradients = [parameter.grad for parameter in parameters]
    received = [_drawn(meta, device) for meta in program.received_meta]
    with entered(program.autocast):
        outputs = program.module(*received, *(leaves[name] for name in program.inputs))
    trained = [output for output in outputs if output.requires_grad]
    torch.autograd.backward(trained, [torch.zeros_like(output) for output in trained])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)


def _drawn(meta: TensorMeta, device: torch.device) -> torch.Tensor:
    """A received tensor: random numbers, or zeros, which are valid indices."""
    tensor = torch.zeros(meta.shape, dtype=meta.dtype, device=device)
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.normal_()
    return tensor.requires_grad_(meta.requires_grad)
