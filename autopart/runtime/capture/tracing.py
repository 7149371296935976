"""A training model as one flat graph: aten operations that compute its loss.

The graph comes from ``torch.export`` in training mode. Its placeholders are the batch's tensor
leaves, and its only output is the scalar loss. Its parameters and buffers are the model's own
objects under the user's names (without the wrapper's prefix ``model.``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _Namespace as Namespace  # pyright: ignore[reportPrivateUsage]
from torch.utils import _pytree as pytree

from autopart.runtime.capture.host_draws import draws_noted, draws_refused
from autopart.runtime.capture.plain_graph import Copier
from autopart.runtime.capture.torch_export import (
    attribute_notes,
    export_surroundings,
    refuse_objects,
    write_at_the_end,
)

_STACK = "nn_module_stack"
"""The exporter's key for the calls in which a node ran."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a batch: a tensor, or a constant that the graph contains."""

    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Traced:
    """The flat graph for a model's loss."""

    module: fx.GraphModule
    leaves: tuple[Leaf, ...]
    """Leaves in batch order. The tensors among them are the graph's placeholders."""
    names: Mapping[int, str]
    """The user's first name for each parameter and buffer, by object id."""
    notes: tuple[str, ...] = ()
    """Notes for the user on differences between graph and code."""


def batch_leaf_names(batch: object) -> list[tuple[str, object]]:
    """Name each leaf of a batch ``(inputs, target)`` by its place.

    A keyword argument keeps its own name, and a positional one is ``inputs_0``. A number is added
    where a graph cannot use the name (``input``).
    """
    found, _ = pytree.tree_flatten_with_path(batch)
    names = Namespace()
    return [(names.create_name(_leaf_name(path), None), leaf) for path, leaf in found]


def trace_loss(
    model: nn.Module, batch: tuple[Any, Any], begin: Callable[[], None] = lambda: None
) -> Traced:
    """Export ``model(*batch)``. Raises any error that the exporter or the model raises.

    `begin` is called before each of one or two traces.
    """
    with export_surroundings(model) as around:
        with draws_noted(model) as drawn:
            begin()
            program = torch.export.export(model, _distinct(batch), strict=False)
        if drawn:
            # The second trace ends at the first draw.
            with draws_noted(model), draws_refused(model):
                begin()
                torch.export.export(model, _distinct(batch), strict=False)
        refuse_objects(program)
        raw = program.module(check_guards=False)
    traced = _rebuilt(raw, model, batch_leaf_names(batch))
    write_at_the_end(traced.module.graph, around.assigned)
    for node in traced.module.graph.nodes:
        if stack := node.meta.get(_STACK):
            node.meta[_STACK] = {
                k: (_unsliced(path, model), *rest) for k, (path, *rest) in stack.items()
            }
    traced.module.recompile()
    return replace(traced, notes=attribute_notes(around.said))


def _unsliced(path: str, root: nn.Module) -> str:
    """Return the user's path of a module that the model took from a slice of a list.

    The exporter calls an element of ``layers[1:]`` for example ``layers.slice(1, None, None).0``.
    """
    if "slice(" not in path:
        return path
    module, found, cut = root, list[str](), slice(None)
    for step in path.split("."):
        if step.startswith("slice("):
            ends = step.removeprefix("slice(").removesuffix(")").split(", ")
            cut = slice(*(None if end == "None" else int(end) for end in ends))
            continue
        if cut != slice(None) and isinstance(module, nn.ModuleList):
            step = str(range(len(module))[cut][int(step)])
        module, cut = module.get_submodule(step), slice(None)
        found.append(step)
    return ".".join(found)


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
    """Return the batch without repeated tensor objects.

    The exporter would take repeated objects (labels that are the input ids) for one input, but
    other microbatches may differ there.
    """
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
    copier = Copier(model, module)
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
    _drop_failed(copier.graph)
    module.graph = copier.graph
    return Traced(module=module, leaves=tuple(leaves), names=copier.user_names)


def _drop_failed(graph: fx.Graph) -> None:
    """Drop operations that failed while the model was traced: the model caught their errors.

    The exporter leaves such an operation in its graph, without a result.
    """
    for node in reversed(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):  # pyright: ignore[reportPrivateUsage]
            schema = node.target._schema  # pyright: ignore[reportPrivateUsage]
            has_effect = node.users or schema.is_mutable
            if not has_effect and node.meta.get("val") is None:
                graph.erase_node(node)
