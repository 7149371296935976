"""Stages as graph modules, cut from a captured model.

A stage takes the previous stage's values and the batch leaves that it reads. It returns a flat
tuple: the values that later stages need, or the loss. Values for distant stages pass through each
stage between, so that stages communicate with neighbours only. Parameters and buffers are the
captured model's own objects under the user's names.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from autopart.errors import PlanError
from autopart.runtime.capture.autocast import Autocast
from autopart.runtime.capture.capture import Captured, CapturedValue
from autopart.runtime.capture.opaque_statements import OpaqueStatements
from autopart.runtime.capture.subgraph import part_nodes
from autopart.runtime.models.attributes import attach, has, is_persistent, lookup
from autopart.text import counted

LOSS_OUTPUT = "loss"
AFTER = "after"
"""Key in a stage node's `meta`: names of the stage's nodes that write into the node's inputs."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """A tensor that crosses a stage boundary. It is always contiguous."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class StageProgram:
    """One stage."""

    layers: tuple[str, ...]
    """Layer names in the model's own order."""
    module: fx.GraphModule
    """Graph that takes ``(*received, *inputs)`` and returns `outputs` as a flat tuple."""
    received: tuple[str, ...]
    """Values from the previous stage, in that stage's output order."""
    inputs: tuple[str, ...]
    """Batch leaves that the stage reads."""
    outputs: tuple[str, ...]
    """Values for the next stage; ``("loss",)`` on the last stage."""
    received_meta: tuple[TensorMeta, ...]
    output_meta: tuple[TensorMeta, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    autocast: Autocast | None = None
    """Autocast under which the module must run."""
    parameters_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """The parameters that each layer reads, by layer name."""


def port(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor for a stage boundary: contiguous, no view, with a contiguous gradient.

    A contiguous tensor is not copied. Without ports, some stages fail under torch's pipelining.
    They end in a view, in a transposed tensor, or in a tensor that their own backward needs.
    """
    return _StagePort.apply(tensor)  # pyright: ignore[reportReturnType]


class _StagePort(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.data.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return own_storage(gradients[0].contiguous())


def own_storage(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient, or a copy where it is part of a larger tensor.

    Otherwise it would keep the larger tensor alive until it is sent.
    """
    is_part = gradient.untyped_storage().nbytes() > gradient.nbytes
    return gradient.clone() if is_part else gradient


def split_stages(captured: Captured, stages: Sequence[Sequence[str]]) -> tuple[StageProgram, ...]:
    """Cut the model into stages, each given by its layer names.

    Raises PlanError where a stage is empty, or where a layer is unknown, missing or in two stages.
    Raises it also where a value would go back to an earlier stage.
    """
    home = _check_stages(captured, stages)
    # Step 1: for each value, find the stage that makes it and the last stage that needs it.
    end = len(stages) - 1
    first = {value.name: home[value.producer] for value in captured.values}
    last = {value.name: max(home[c] for c in value.consumers) for value in captured.values}
    loss = _loss_node(captured.module)
    first[loss.name], last[loss.name] = home[captured.layer_of[loss.name]], end
    # Step 2: a value crosses each cut between these stages.
    crossing = [
        [name for name in _in_graph_order(captured, first) if first[name] < cut <= last[name]]
        for cut in range(len(stages) + 1)
    ]
    return tuple(
        _program(captured, layers, crossing[s], (crossing[s + 1] if s < end else [LOSS_OUTPUT]))
        for s, layers in enumerate(stages)
    )


def split_layers(
    captured: Captured, names: Collection[str] | None = None
) -> tuple[StageProgram, ...]:
    """Return each layer, or each one in `names`, as its own stage with exactly its values.

    The layer that makes the loss returns it as its last output.
    """
    loss = _loss_node(captured.module)
    programs: list[StageProgram] = []
    for layer in captured.layers:
        if names is not None and layer.name not in names:
            continue
        received = [v.name for v in captured.values if layer.name in v.consumers]
        outputs = [v.name for v in captured.values if v.producer == layer.name]
        if captured.layer_of[loss.name] == layer.name:
            outputs.append(LOSS_OUTPUT)
        programs.append(_program(captured, [layer.name], received, outputs))
    return tuple(programs)


def _check_stages(captured: Captured, stages: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the stage index for each layer. Raises PlanError as `split_stages` does."""
    known = [layer.name for layer in captured.layers]
    home: dict[str, int] = {}
    if not stages:
        raise PlanError("the plan has no stages; the model's layers need at least one")
    for index, layers in enumerate(stages):
        _check_stage(index, layers, known)
        for name in layers:
            if name in home:
                raise PlanError(f"layer '{name}' is in stage {home[name]} and in stage {index}")
            home[name] = index
    missing = [name for name in known if name not in home]
    if missing:
        raise PlanError(
            f"{counted(len(missing), 'layer of the model is', 'layers of the model are')} in no stage: {_some(missing)}"
        )
    _check_forward(captured, home)
    return home


def _check_stage(index: int, layers: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(layers, str) or not layers:
        fault = f"is the text '{layers}'" if layers else "has no layers"
        raise PlanError(f"stage {index} {fault}; give each stage a list of layer names")
    for name in layers:
        if name not in known:
            raise PlanError(
                f"stage {index} has layer '{name}', which the model does not have; its "
                f"{counted(len(known), 'layer is', 'layers are')} {_some(known)}"
            )


def _check_forward(captured: Captured, home: Mapping[str, int]) -> None:
    for value in captured.values:
        for consumer in value.consumers:
            if home[consumer] < home[value.producer]:
                raise PlanError(
                    f"layer '{consumer}' in stage {home[consumer]} needs '{value.name}' of layer "
                    f"'{value.producer}' in the later stage {home[value.producer]}; put "
                    f"'{consumer}' into stage {home[value.producer]} or later"
                )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _in_graph_order(captured: Captured, names: Collection[str]) -> list[str]:
    return [node.name for node in captured.module.graph.nodes if node.name in names]


def _program(
    captured: Captured, layers: Sequence[str], received: Sequence[str], outputs: Sequence[str]
) -> StageProgram:
    nodes = part_nodes(captured.module.graph, captured.layer_of, captured.after, set(layers))
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    names = {
        name: None for layer in captured.layers if layer.name in layers for name in layer.parameters
    }
    buffers = {
        name: None for layer in captured.layers if layer.name in layers for name in layer.buffers
    }
    metas = _metas(captured)
    module = _stage_module(captured, nodes, received, inputs, outputs, metas)
    for name in (*names, *buffers):
        # An opaque module has a tied tensor under its own name for it, not under the first name.
        if not has(module, name):
            _share(captured.module, module, name)
    return StageProgram(
        layers=tuple(layer.name for layer in captured.layers if layer.name in layers),
        module=module,
        received=tuple(received),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        received_meta=tuple(metas[name] for name in received),
        output_meta=tuple(metas[name] for name in outputs),
        parameters=tuple(names),
        buffers=tuple(buffers),
        autocast=captured.autocast,
        parameters_of={
            layer.name: tuple(layer.parameters) for layer in captured.layers if layer.name in layers
        },
    )


def _metas(captured: Captured) -> dict[str, TensorMeta]:
    metas = {v.name: _meta(v) for v in captured.values}
    loss = _loss_node(captured.module)
    scalar = TensorMeta((), loss.meta["val"].dtype, requires_grad=True)
    return {**metas, loss.name: scalar, LOSS_OUTPUT: scalar}


def _loss_node(module: fx.GraphModule) -> fx.Node:
    loss = module.graph.output_node().args[0]
    assert isinstance(loss, fx.Node)
    return loss


def _meta(value: CapturedValue) -> TensorMeta:
    return TensorMeta(value.shape, value.dtype, value.has_gradient)


def _stage_module(
    captured: Captured,
    nodes: Sequence[fx.Node],
    received: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    metas: Mapping[str, TensorMeta],
) -> fx.GraphModule:
    source = captured.module
    by_name = {node.name: node for node in source.graph.nodes}
    module, graph, env = fx.GraphModule({}, fx.Graph()), fx.Graph(), dict[fx.Node, fx.Node]()
    # Step 1: placeholders, then the stage's own nodes with their parameters and buffers.
    places = {name: graph.placeholder(name) for name in (*received, *inputs)}
    for name in inputs:
        env[by_name[name]] = places[name]

    def taken(node: fx.Node) -> fx.Node:
        # A port stands where it is first needed. Backward then passes it at once. Otherwise a
        # gradient that is part of a larger one would keep that one alive until all else has run.
        if node not in env:
            env[node] = graph.call_function(port, (places[node.name],))
        return env[node]

    for node in nodes:
        if node.op == "placeholder":
            continue
        arguments = {n: taken(n) for n in node.all_input_nodes}
        env[node] = graph.node_copy(node, arguments.__getitem__)
        env[node].meta["layer"] = captured.layer_of.get(node.name)
        writers = [by_name[name] for name in captured.after.get(node.name, ())]
        env[node].meta[AFTER] = tuple(env[n].name for n in writers if n in env)
        if node.op in ("get_attr", "call_module"):
            _share(source, module, str(node.target))
    # Step 2: outputs leave through ports. Values without a gradient are detached.
    results: list[fx.Node] = []
    for name in outputs:
        made = taken(_loss_node(source) if name == LOSS_OUTPUT else by_name[name])
        if not metas[name].requires_grad:
            made = graph.call_function(torch.ops.aten.detach.default, (made,))
        if name == LOSS_OUTPUT:
            # For some losses (mse_loss on a CPU) the mean keeps the storage of all its terms alive.
            made = graph.call_function(torch.ops.aten.clone.default, (made,))
        results.append(graph.call_function(port, (made,)))
    graph.output(tuple(results))
    module.graph = graph
    return module


def _share(source: fx.GraphModule, module: fx.GraphModule, name: str) -> None:
    value = lookup(source, name)
    for path, part in value.parts.items() if isinstance(value, OpaqueStatements) else ():
        attach(module, path, part)
    is_buffer = isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
    attach(module, name, value, persistent=is_buffer and is_persistent(source, name))
