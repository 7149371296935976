"""A training model as one flat graph of aten operations that computes its loss.

The graph comes from ``torch.export`` in training mode. Its placeholders are the tensor leaves of a
batch, its only output is the scalar loss, and its parameters and buffers are the model's own
objects under the user's names (without the ``model.`` that the wrapper adds).
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.errors import ModelError
from autopart.runtime.exporting import (
    assignments_as_writes,
    attribute_notes,
    attributes_kept,
    quiet,
    write_at_the_end,
)

WRAPPED = "model."
"""What the wrapper around the user's model puts before each of its names."""

_NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_ASSERTS = ("_assert_tensor_metadata",)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a batch: a tensor, or a constant that the graph has burned in."""

    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Traced:
    """The flat graph of a model's loss."""

    module: fx.GraphModule
    leaves: tuple[Leaf, ...]
    """In the order of the batch; the tensors among them are the graph's placeholders."""
    names: Mapping[int, str]
    """The user's first name of each parameter and buffer, by the object's id."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the graph differs from the code."""


def user_name(name: str) -> str:
    """A name as the user's own model has it."""
    return name.removeprefix(WRAPPED)


def batch_leaf_names(batch: object) -> list[tuple[str, object]]:
    """The leaves of a batch ``(inputs, target)``, each with a name from its place in it.

    A keyword argument has its own name, a positional one is ``inputs_0``. Where that is no name
    that a graph can use (``input``), a number stands behind it.
    """
    found, _ = pytree.tree_flatten_with_path(batch)
    names = fx.graph._Namespace()
    return [(names.create_name(_leaf_name(path), None), leaf) for path, leaf in found]


def trace_loss(model: nn.Module, batch: tuple[Any, Any]) -> Traced:
    """Export ``model(*batch)``; raises whatever the exporter or the model raises."""
    with quiet() as said, attributes_kept(model), assignments_as_writes() as assigned:
        program = torch.export.export(model, _distinct(batch), strict=False)
        raw = program.module(check_guards=False)
    traced = _rebuilt(raw, model, batch_leaf_names(batch))
    write_at_the_end(traced.module.graph, assigned)
    traced.module.recompile()
    return replace(traced, notes=attribute_notes(said))


def attach(root: nn.Module, name: str, value: object, *, persistent: bool = True) -> None:
    """Put a parameter, buffer or module under a dotted name; the object itself, no copy."""
    *path, last = name.split(".")
    try:
        for step in path:
            if step not in root._modules:
                root.add_module(step, nn.Module())
            root = root.get_submodule(step)
        if isinstance(value, nn.Parameter):
            root.register_parameter(last, value)
        elif isinstance(value, torch.Tensor):
            root.register_buffer(last, value, persistent=persistent)
        else:
            assert isinstance(value, nn.Module)
            root.add_module(last, value)
    except KeyError as error:
        raise ModelError(
            f"the model has a part called '{name}', a name that graph modules need for "
            f"themselves ({error.args[0]}); rename it"
        ) from error


def lookup(root: nn.Module, name: str) -> Any:
    """The parameter, buffer or module under a dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)


def is_persistent(root: nn.Module, name: str) -> bool:
    """Whether the buffer under a dotted name is part of the state dict."""
    path, _, last = name.rpartition(".")
    return last not in root.get_submodule(path)._non_persistent_buffers_set


def _leaf_name(path: tuple[Any, ...]) -> str:
    keys = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    ]
    root = ("inputs", "target")[int(keys[0])]
    by_keyword = root == "inputs" and len(keys) > 1 and isinstance(path[1], pytree.MappingKey)
    if by_keyword and keys[1] != "target":
        return "_".join(keys[1:])
    return "_".join([root, *keys[1:]])


def _distinct(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """The batch with no tensor object in it twice: the exporter would take both for one input
    (labels that are the input ids themselves), and other microbatches need not be so."""
    seen: set[int] = set()

    def fresh(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in seen:
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        seen.add(id(leaf))
        return leaf

    return pytree.tree_map(fresh, batch)


def _rebuilt(raw: fx.GraphModule, model: nn.Module, named: list[tuple[str, object]]) -> Traced:
    module = fx.GraphModule({}, fx.Graph())
    copier = _Copier(raw, model, module)
    places = [node for node in raw.graph.nodes if node.op == "placeholder"]
    assert len(places) == len(named), "one placeholder for each leaf of the batch"
    leaves: list[Leaf] = []
    for place, (name, value) in zip(places, named, strict=True):
        if isinstance(value, torch.Tensor):
            copier.env[place] = copier.graph.placeholder(name)
            copier.env[place].meta = dict(place.meta)
            assert copier.env[place].name == name
        leaves.append(Leaf(name, value))
    (loss,) = copier.copy_nodes(raw)
    copier.graph.output(loss)
    module.graph = copier.graph
    return Traced(module=module, leaves=tuple(leaves), names=copier.user_names)


class _Copier:
    """Copies nodes of the exporter's graph into a plain one under the user's names."""

    def __init__(self, raw: fx.GraphModule, model: nn.Module, module: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self._raw = raw
        self._module = module
        self._names: dict[str, str] = {}
        self._attributes: dict[str, fx.Node] = {}
        self.user_names = user_names(model)
        self._persistent = persistent_buffers(model)
        self._num_regions = 0

    def copy_nodes(self, owner: fx.GraphModule) -> list[Any]:
        """Copy all of `owner`'s nodes; its placeholders must be in `env`. Returns its outputs."""
        for node in owner.graph.nodes:
            if node.op == "output":
                flat = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
                flat, _ = pytree.tree_flatten(flat, is_leaf=lambda x: isinstance(x, fx.Node))
                return [self.env[out] for out in flat]
            if node.op != "placeholder":
                self._copy(owner, node)
        raise AssertionError("every graph has an output")

    def _copy(self, owner: fx.GraphModule, node: fx.Node) -> None:
        if node.op == "call_module" or any(name in str(node.target) for name in _ASSERTS):
            return  # the exporter's own guards, which also forbid another dtype
        if node.op == "get_attr":
            self.env[node] = self._attribute(owner, node)
        elif node.target is operator.getitem and isinstance(self.env.get(node.args[0]), list):
            self.env[node] = self.env[node.args[0]][node.args[1]]
        elif node.target is _NO_GRAD and node.args[0] is False and _inlines(owner, node):
            self.env[node] = self._without_gradient(owner, node)
        else:
            self.env[node] = self.graph.node_copy(node, lambda n: self.env[n])

    def _attribute(self, owner: fx.GraphModule, node: fx.Node) -> fx.Node:
        value = lookup(owner, str(node.target))
        name = self._attribute_name(owner, str(node.target), value)
        if name not in self._attributes:
            attach(self._module, name, value, persistent=id(value) in self._persistent)
            # Attributes stand together at the front, so that their order is the model's.
            self._attributes[name] = self.graph.create_node("get_attr", name, name=name)
            self._attributes[name].meta = dict(node.meta)
        return self._attributes[name]

    def _attribute_name(self, owner: fx.GraphModule, target: str, value: object) -> str:
        if id(value) in self.user_names:
            return self.user_names[id(value)]
        if isinstance(value, fx.GraphModule):
            self._num_regions += 1
            return f"region_{self._num_regions}"
        return user_name(target)

    def _without_gradient(self, owner: fx.GraphModule, node: fx.Node) -> list[Any]:
        """Inline a ``no_grad`` region: from detached arguments nothing needs a gradient, and the
        region's own modules can then be told apart."""
        inner = lookup(owner, str(node.args[1].target))
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for place, argument in zip(places, node.args[2:], strict=True):
            given = self.env[argument] if isinstance(argument, fx.Node) else argument
            if isinstance(given, fx.Node) and _is_tensor(argument):
                given = self.graph.call_function(torch.ops.aten.detach.default, (given,))
                given.meta = {**dict(argument.meta), "nn_module_stack": None}
            self.env[place] = given
        return self.copy_nodes(inner)


def _inlines(owner: fx.GraphModule, node: fx.Node) -> bool:
    """A region that turns gradients on again inside stays whole."""
    inner = lookup(owner, str(node.args[1].target))
    return not any(n.target is _NO_GRAD and n.args[0] is True for n in inner.graph.nodes)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def persistent_buffers(model: nn.Module) -> frozenset[int]:
    """The ids of the buffers that are part of the model's state dict."""
    return frozenset(
        id(buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    )


def user_names(model: nn.Module) -> Mapping[int, str]:
    """The user's first name of each parameter and buffer object."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {id(value): user_name(name) for name, value in named}
