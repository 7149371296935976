"""Stages as graph modules, cut from a captured model.

A stage takes what the stage before it hands on and the batch leaves that it reads, and returns a
flat tuple: what later stages need, or the loss. Values that are needed further on pass through each
stage between, so that stages talk to their neighbours only. Parameters and buffers are the captured
model's own objects under the user's names.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autopart.errors import PlanError
from autopart.runtime.capture.autocast import Autocast
from autopart.runtime.capture.capture import Captured, CapturedValue
from autopart.runtime.capture.program import part_nodes
from autopart.runtime.models.attributes import attach, is_persistent, lookup

LOSS_OUTPUT = "loss"
AFTER = "after"
"""What a node of a stage says in its `meta`: the names of the nodes there that write into what it reads."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What crosses a boundary: always contiguous."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class StageProgram:
    """One stage."""

    layers: tuple[str, ...]
    """In the model's own order of execution."""
    module: fx.GraphModule
    """Takes ``(*received, *inputs)`` and returns a flat tuple of `outputs`."""
    received: tuple[str, ...]
    """The values that the stage before hands on, in its order."""
    inputs: tuple[str, ...]
    """The batch leaves that the stage reads."""
    outputs: tuple[str, ...]
    """The values for the next stage; ``("loss",)`` on the last."""
    received_meta: tuple[TensorMeta, ...]
    output_meta: tuple[TensorMeta, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    autocast: Autocast | None = None
    """Under which the module must run."""


def port(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor at the boundary of a stage: contiguous and no view, and its gradient contiguous.

    Nothing is copied where it is contiguous already. Without this, stages that end in a view, in a
    tensor that their own backward needs, or in a transposed one fail under torch's pipelining.
    """
    return _Port.apply(tensor)  # pyright: ignore[reportReturnType]


class _Port(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.data.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return alone(gradients[0].contiguous())


def alone(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient, or a copy where it is a part of a larger tensor, which it would keep until it is sent."""
    is_part = gradient.untyped_storage().nbytes() > gradient.nbytes
    return gradient.clone() if is_part else gradient


def split_stages(captured: Captured, stages: Sequence[Sequence[str]]) -> tuple[StageProgram, ...]:
    """Cut the model into stages, each given by its layers' names.

    Raises PlanError where a stage is empty, a layer is unknown, missing or in two stages, or a
    value would have to go back to an earlier stage.
    """
    home = _check_stages(captured, stages)
    end = len(stages) - 1
    first = {value.name: home[value.producer] for value in captured.values}
    last = {value.name: max(home[c] for c in value.consumers) for value in captured.values}
    loss = _loss_node(captured.module)
    first[loss.name], last[loss.name] = home[captured.layer_of[loss.name]], end
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
    """Each layer, or each of `names`, as a stage of its own that receives and returns exactly its
    values; the layer that makes the loss returns it last."""
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
    """The stage of each layer."""
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
        raise PlanError(f"{len(missing)} layers of the model are in no stage: {_some(missing)}")
    _check_forward(captured, home)
    return home


def _check_stage(index: int, layers: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(layers, str) or not layers:
        what = f"is the text '{layers}'" if layers else "has no layers"
        raise PlanError(f"stage {index} {what}; give each stage a list of layer names")
    for name in layers:
        if name not in known:
            raise PlanError(
                f"stage {index} has layer '{name}', which the model does not have; its "
                f"{len(known)} layers are {_some(known)}"
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
    return StageProgram(
        layers=tuple(layer.name for layer in captured.layers if layer.name in layers),
        module=_stage_module(captured, nodes, received, inputs, outputs, metas),
        received=tuple(received),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        received_meta=tuple(metas[name] for name in received),
        output_meta=tuple(metas[name] for name in outputs),
        parameters=tuple(names),
        buffers=tuple(buffers),
        autocast=captured.autocast,
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
    places = {name: graph.placeholder(name) for name in (*received, *inputs)}
    for name in inputs:
        env[by_name[name]] = places[name]

    def taken(node: fx.Node) -> fx.Node:
        # A port stands where it is first needed: backward then passes it at once, so that a gradient which is
        # a part of a larger one does not hold that one until all else has run.
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
    results: list[fx.Node] = []
    for name in outputs:
        made = taken(_loss_node(source) if name == LOSS_OUTPUT else by_name[name])
        if not metas[name].requires_grad:
            made = graph.call_function(torch.ops.aten.detach.default, (made,))
        if name == LOSS_OUTPUT:
            # Of some losses (mse_loss on a CPU) the mean keeps the storage of what it is the mean of.
            made = graph.call_function(torch.ops.aten.clone.default, (made,))
        results.append(graph.call_function(port, (made,)))
    graph.output(tuple(results))
    module.graph = graph
    return module


def _share(source: fx.GraphModule, module: fx.GraphModule, name: str) -> None:
    value = lookup(source, name)
    is_buffer = isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
    attach(module, name, value, persistent=is_buffer and is_persistent(source, name))
