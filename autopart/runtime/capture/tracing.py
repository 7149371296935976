"""A training model as one flat graph of aten operations that computes its loss.

The graph comes from ``torch.export`` in training mode. Its placeholders are the tensor leaves of a
batch, its only output is the scalar loss, and its parameters and buffers are the model's own
objects under the user's names (without the ``model.`` that the wrapper adds).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _Namespace as Namespace  # pyright: ignore[reportPrivateUsage]
from torch.utils import _pytree as pytree

from autopart.runtime.capture.exporting import (
    attribute_notes,
    export_surroundings,
    write_at_the_end,
)
from autopart.runtime.capture.rebuild import Copier


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


def batch_leaf_names(batch: object) -> list[tuple[str, object]]:
    """The leaves of a batch ``(inputs, target)``, each with a name from its place in it.

    A keyword argument has its own name, a positional one is ``inputs_0``. Where that is no name
    that a graph can use (``input``), a number stands behind it.
    """
    found, _ = pytree.tree_flatten_with_path(batch)
    names = Namespace()
    return [(names.create_name(_leaf_name(path), None), leaf) for path, leaf in found]


def trace_loss(model: nn.Module, batch: tuple[Any, Any]) -> Traced:
    """Export ``model(*batch)``; raises whatever the exporter or the model raises."""
    with export_surroundings(model) as around:
        program = torch.export.export(model, _distinct(batch), strict=False)
        raw = program.module(check_guards=False)
    traced = _rebuilt(raw, model, batch_leaf_names(batch))
    write_at_the_end(traced.module.graph, around.assigned)
    traced.module.recompile()
    return replace(traced, notes=attribute_notes(around.said))


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
    module.graph = copier.graph
    return Traced(module=module, leaves=tuple(leaves), names=copier.user_names)
