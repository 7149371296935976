"""The model under the profiler: built, captured, and cut into one program per layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import fx

from autopart.runtime.capture.capture import (
    Captured,
    CapturedLayer,
    Granularity,
    batch_leaves,
    capture_model,
)
from autopart.runtime.capture.stage_modules import LOSS_OUTPUT, port, split_layers
from autopart.runtime.models.attributes import lookup
from autopart.runtime.models.model import (
    Batch,
    TrainingModel,
    build_training_model,
    check_model,
    example_batch,
)
from autopart.runtime.models.model_file import load_model
from autopart.runtime.models.precision import cast_model, dtype_of, main_dtype, notes_on_cast
from autopart.runtime.models.sequences import with_length
from autopart.runtime.profiling.layer_by_layer import LayerProgram, LayerPrograms
from autopart.runtime.profiling.replicated_nodes import SharingProgram, share_replicated
from autopart.runtime.transforms.split_backward import split_backwards


@dataclass(frozen=True, slots=True)
class ProfiledModel:
    """A model ready to be profiled. Its trained parameters have gradients to add to."""

    model: TrainingModel
    batch: Batch
    dtype: str
    """Dtype that most parameter elements have."""
    has_own_dtypes: bool
    """Whether other parameters, buffers or batch tensors have other dtypes."""
    notes: tuple[str, ...]
    """Notes for the user on changes to the model."""
    captured: Captured
    programs: LayerPrograms
    """Layers that each compute everything except other layers' values, as if alone on a stage."""
    timed: LayerPrograms
    """The same layers, but replicated tensors are computed only by the first layer that needs one.

    Stages do the same with their layers.
    """
    timed_plainly: LayerPrograms
    """The layers of `timed` without the compiler, also where `timed` is compiled."""
    split: LayerPrograms
    """The layers of `programs` with split backwards, where they can be split."""
    timed_split: LayerPrograms
    """The layers of `timed` with split backwards, where they can be split."""
    parameters: tuple[tuple[torch.nn.Parameter, ...], ...]
    """Parameters for each layer, without repetition."""
    leaves: tuple[torch.Tensor, ...]
    """The batch's tensors, in the order in which the captured graph takes them."""
    state: tuple[torch.Tensor, ...]
    """Parameters, buffers and batch tensors, which exist before a microbatch runs."""


def prepare_model(
    name: str,
    microbatch_size: int,
    *,
    dtype: str | None,
    device: str,
    granularity: Granularity,
    sequence_length: int | None = None,
) -> ProfiledModel:
    """Build and capture the model that `name` names. Raises ModelError where that fails."""
    source = load_model(name)
    if sequence_length is not None:
        source = with_length(source, microbatch_size, sequence_length)
    model = build_training_model(source, device=device)
    batch = example_batch(source, microbatch_size, device=device)
    casts = () if dtype is None else notes_on_cast(model, batch, dtype)
    if dtype is not None:
        cast_model(model, dtype_of(dtype))
        batch = example_batch(source, microbatch_size, dtype=dtype, device=device)
    main, is_only = main_dtype(model, batch)
    numbers = check_model(model, batch, "; ".join(casts))
    captured = capture_model(model, batch, granularity=granularity)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    leaves = batch_leaves(captured, batch)
    return ProfiledModel(
        model=model,
        batch=batch,
        dtype=main,
        has_own_dtypes=not is_only,
        notes=(*model.notes, *casts, *numbers),
        captured=captured,
        state=_state(captured, leaves, model),
        **_divided(captured, leaves),
    )


def local_profiled(profiled: ProfiledModel, local: Captured) -> ProfiledModel:
    """Return one rank's local graph, ready to be profiled in place of the whole model.

    `local` must have parameters of its own (`sharding.local_model`).
    """
    for parameter in local.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    leaves = batch_leaves(local, profiled.batch)
    state = _state(local, leaves, local.module)
    return replace(profiled, captured=local, state=state, **_divided(local, leaves))


class _Divided(TypedDict):
    """The fields of a `ProfiledModel` that follow from its graph."""

    programs: LayerPrograms
    timed: LayerPrograms
    timed_plainly: LayerPrograms
    split: LayerPrograms
    timed_split: LayerPrograms
    parameters: tuple[tuple[torch.nn.Parameter, ...], ...]
    leaves: tuple[torch.Tensor, ...]


def _divided(captured: Captured, leaves: dict[str, torch.Tensor]) -> _Divided:
    parameters = tuple(_parameters(captured, layer) for layer in captured.layers)
    plain = _layer_programs(captured, leaves, parameters, sharing=True)
    return _Divided(
        programs=_layer_programs(captured, leaves, parameters),
        timed=plain,
        timed_plainly=plain,
        split=_layer_programs(captured, leaves, parameters, splitting=True),
        timed_split=_layer_programs(captured, leaves, parameters, sharing=True, splitting=True),
        parameters=parameters,
        leaves=tuple(leaves.values()),
    )


def _state(
    captured: Captured, leaves: dict[str, torch.Tensor], model: torch.nn.Module
) -> tuple[torch.Tensor, ...]:
    constants = (*captured.module.parameters(), *captured.module.buffers())
    return (*model.parameters(), *model.buffers(), *constants, *leaves.values())


def _parameters(captured: Captured, layer: CapturedLayer) -> tuple[torch.nn.Parameter, ...]:
    found = [lookup(captured.module, name) for name in layer.parameters]
    return tuple({id(parameter): parameter for parameter in found}.values())


def _layer_programs(
    captured: Captured,
    leaves: dict[str, torch.Tensor],
    parameters: Sequence[Sequence[torch.nn.Parameter]],
    *,
    sharing: bool = False,
    splitting: bool = False,
) -> LayerPrograms:
    stages = split_layers(captured)
    programs = [
        SharingProgram(without_ports(stage.module), stage.received, stage.outputs)
        for stage in stages
    ]
    if sharing:
        share_replicated(programs)
    if splitting:
        for program in programs:
            split_backwards(program.module)
    layers = zip(captured.layers, stages, programs, parameters, strict=True)
    return LayerPrograms(
        layers=tuple(
            LayerProgram(
                name=layer.name,
                module=program.module,
                received=program.received,
                inputs=tuple(leaves[name] for name in stage.inputs),
                outputs=program.outputs,
                trained=any(parameter.requires_grad for parameter in read),
            )
            for layer, stage, program, read in layers
        ),
        differentiable=frozenset(v.name for v in captured.values if v.has_gradient),
        loss=LOSS_OUTPUT,
    )


def without_ports(module: fx.GraphModule) -> fx.GraphModule:
    """Remove the ports from a layer's program, in place.

    Ports stand at stage boundaries, which most layers do not touch. Inside a stage, values pass on
    as they are, contiguous or not.
    """
    for node in module.graph.find_nodes(op="call_function", target=port):
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    module.recompile()
    return module
