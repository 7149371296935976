"""Fallback for a model that the exporter cannot look into: a graph with one call of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.runtime.capture.call_outputs import META_KEY, OutputTemplate, TensorShape
from autopart.runtime.capture.tracing import Leaf, Traced, batch_leaf_names
from autopart.runtime.models.attributes import (
    WRAPPED,
    attach,
    persistent_buffers,
    user_name,
    user_names,
)
from autopart.runtime.models.model import Batch, TrainingModel


class RunModel:
    """Runs a training model on a batch's tensors, as a graph's call target."""

    __name__ = "run_model"

    def __init__(self, model: TrainingModel, batch: Batch, parameters: Sequence[str]) -> None:
        leaves, self._structure = pytree.tree_flatten(batch)
        self._constants = [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        self.model = model
        self._parameters = tuple(parameters)

    def __call__(
        self, tensors: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], *_: Any
    ) -> torch.Tensor:
        """Return the loss with these parameters. Buffers are the model's own."""
        given = iter(tensors)
        leaves = [next(given) if known is None else known[0] for known in self._constants]
        inputs, target = pytree.tree_unflatten(leaves, self._structure)
        state = dict(zip(self._parameters, parameters, strict=True))
        return torch.func.functional_call(self.model, state, (inputs, target))


def trace_whole(model: TrainingModel, batch: Batch, reason: str) -> Traced:
    """Return a graph with one call of the whole model. `reason` tells why there is no finer one."""
    module, graph = fx.GraphModule({}, fx.Graph()), fx.Graph()
    leaves = [Leaf(name, value) for name, value in batch_leaf_names(batch)]
    places = [graph.placeholder(x.name) for x in leaves if isinstance(x.value, torch.Tensor)]
    parameters = dict(model.named_parameters())
    buffers, persistent = dict(model.named_buffers()), persistent_buffers(model)
    state: dict[str, fx.Node] = {}
    for name, value in (*parameters.items(), *buffers.items()):
        attach(module, user_name(name), value, persistent=id(value) in persistent)
        state[name] = graph.create_node("get_attr", user_name(name))
    run = RunModel(model, batch, tuple(parameters))
    call = graph.call_function(
        run,  # pyright: ignore[reportArgumentType]
        (places, [state[n] for n in parameters], [state[n] for n in buffers]),
    )
    call.meta = {META_KEY: _scalar(model), "nn_module_stack": {"": (WRAPPED[:-1], "")}}
    graph.output(call)
    module.graph = graph
    note = f"the whole model is one layer, run as it is, because it cannot be captured: {reason}"
    return Traced(module=module, leaves=tuple(leaves), names=user_names(model), notes=(note,))


def _scalar(model: nn.Module) -> OutputTemplate:
    first = next(model.parameters())
    leaf = TensorShape((), first.dtype, first.device, requires_grad=True)
    return OutputTemplate((leaf,), pytree.tree_structure(0))
