"""The model to be profiled: built, captured, and cut into one program a layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from autopart.runtime.capture.capture import (
    Captured,
    CapturedLayer,
    Granularity,
    batch_leaves,
    capture_model,
)
from autopart.runtime.capture.split import LOSS_OUTPUT, port, split_layers
from autopart.runtime.execution.weight_gradients import split_backwards
from autopart.runtime.models.attributes import lookup
from autopart.runtime.models.model import (
    Batch,
    TrainingModel,
    build_training_model,
    check_model,
    example_batch,
    load_model,
)
from autopart.runtime.profiling.replicated import SharingProgram, share_replicated
from autopart.runtime.profiling.segments import Segment, Segments


@dataclass(frozen=True, slots=True)
class Subject:
    """A model ready to be profiled; its parameters have gradients to be added to."""

    model: TrainingModel
    batch: Batch
    captured: Captured
    segments: Segments
    """Layers that each compute all that they need besides values of other layers."""
    timed: Segments
    """The same, but what several layers would compute alike is computed by the first of them."""
    split: Segments
    """`segments` with their backwards in halves, where they can be split."""
    timed_split: Segments
    """`timed` with their backwards in halves."""
    parameters: tuple[tuple[torch.nn.Parameter, ...], ...]
    """Of each layer, each once."""
    leaves: tuple[torch.Tensor, ...]
    """The tensors of the batch, as the captured graph takes them."""
    state: tuple[torch.Tensor, ...]
    """Parameters, buffers and inputs of the batch: what is there before a microbatch runs."""


def prepare_subject(
    name: str, microbatch_size: int, *, dtype: str, device: str, granularity: Granularity
) -> Subject:
    """Build and capture the model that `name` names; raises ModelError where that fails."""
    source = load_model(name)
    model = build_training_model(source, dtype=dtype, device=device)
    batch = example_batch(source, microbatch_size, dtype=dtype, device=device)
    check_model(model, batch)
    captured = capture_model(model, batch, granularity=granularity)
    leaves = batch_leaves(captured, batch)
    parameters = tuple(_parameters(captured, layer) for layer in captured.layers)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    constants = (*captured.module.parameters(), *captured.module.buffers())
    return Subject(
        model=model,
        batch=batch,
        captured=captured,
        segments=_segments(captured, leaves, parameters),
        timed=_segments(captured, leaves, parameters, sharing=True),
        split=_segments(captured, leaves, parameters, splitting=True),
        timed_split=_segments(captured, leaves, parameters, sharing=True, splitting=True),
        parameters=parameters,
        leaves=tuple(leaves.values()),
        state=(*model.parameters(), *model.buffers(), *constants, *leaves.values()),
    )


def _parameters(captured: Captured, layer: CapturedLayer) -> tuple[torch.nn.Parameter, ...]:
    found = [lookup(captured.module, name) for name in layer.parameters]
    return tuple({id(parameter): parameter for parameter in found}.values())


def _segments(
    captured: Captured,
    leaves: dict[str, torch.Tensor],
    parameters: Sequence[Sequence[torch.nn.Parameter]],
    *,
    sharing: bool = False,
    splitting: bool = False,
) -> Segments:
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
    return Segments(
        layers=tuple(
            Segment(
                name=layer.name,
                program=program.module,
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
    """The layer's program without what stands at the boundaries of a stage, of which most layers
    touch none: inside a stage its values go on as they are, contiguous or not."""
    for node in module.graph.find_nodes(op="call_function", target=port):
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    module.recompile()
    return module
