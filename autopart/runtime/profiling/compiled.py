"""A model under the profiler whose times are for graphs under torch's compiler."""

import copy
import math
from dataclasses import replace

import torch

from autopart.errors import ModelError
from autopart.runtime.profiling.layer_by_layer import (
    ForwardCall,
    LayerProgram,
    LayerPrograms,
    Outputs,
    run_forward,
)
from autopart.runtime.profiling.profiled_model import ProfiledModel
from autopart.runtime.profiling.whole_model import Forward, graph_forward
from autopart.runtime.transforms.compiled_segments import compile_segments

TOLERANCE = 1e-5
"""Largest relative difference of the loss from its value without the compiler, in float32."""


def compiled(profiled: ProfiledModel) -> ProfiledModel:
    """Return the profiled model with compiled programs to time; bytes stay those without it.

    Raises ModelError where the compiled layers give another loss.
    """
    made = replace(
        profiled, timed=_compiled(profiled.timed), timed_split=_compiled(profiled.timed_split)
    )
    coarse = torch.finfo(getattr(torch, profiled.dtype)).eps / torch.finfo(torch.float32).eps
    plain = _loss(profiled.timed)
    for programs in (made.timed, made.timed_split):
        mine = _loss(programs)
        apart = abs(mine - plain) / (abs(plain) or 1.0)
        if apart > TOLERANCE * max(1.0, coarse) or math.isnan(mine) != math.isnan(plain):
            raise ModelError(
                f"{profiled.model.name}: compiled layers give loss {mine:.9g}, and without the "
                f"compiler {plain:.9g}; leave --compile out"
            )
    return made


def compiled_forward(profiled: ProfiledModel) -> Forward:
    """Return a forward that runs the captured graph at once, under the compiler."""
    module = copy.copy(profiled.captured.module)
    compile_segments(module)
    whole = replace(profiled, captured=replace(profiled.captured, module=module))
    return graph_forward(whole)


def _compiled(programs: LayerPrograms) -> LayerPrograms:
    return replace(programs, layers=tuple(map(_compiled_layer, programs.layers)))


def _compiled_layer(layer: LayerProgram) -> LayerProgram:
    module = copy.copy(layer.module)
    compile_segments(module)
    return replace(layer, module=module)


def _loss(programs: LayerPrograms) -> float:
    """The loss with a fixed seed, so that both programs draw the same numbers."""
    found: list[torch.Tensor] = []

    def around(call: ForwardCall) -> Outputs:
        outputs = call.run()
        found[:] = outputs
        return outputs

    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_forward(programs, around)
    return found[-1].item()
