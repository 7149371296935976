"""Rewrites that change no number in a traced graph, but free stages from one another.

- A conversion to the present dtype or device (``x.to(x.dtype)``) is dropped. The exporter chains
  such conversions of a shared tensor through every block that makes one.
- ``x.new_zeros(…)`` and similar operations need only ``x``'s shape: they become constants.
- A model that writes into its batch writes into a copy instead, because stages share the batch.
"""

from typing import Any

import torch
from torch import fx

from autopart.runtime.capture.dataflow import Dataflow, Fact

_ATEN = torch.ops.aten
_CONVERSIONS = (
    _ATEN.to.dtype,
    _ATEN.to.device,
    _ATEN.to.dtype_layout,
    _ATEN.to.other,
)
_FILLED = {
    _ATEN.new_zeros.default: (_ATEN.zeros.default, None),
    _ATEN.zeros_like.default: (_ATEN.zeros.default, None),
    _ATEN.new_ones.default: (_ATEN.ones.default, None),
    _ATEN.ones_like.default: (_ATEN.ones.default, None),
    _ATEN.new_empty.default: (_ATEN.empty.memory_format, None),
    _ATEN.empty_like.default: (_ATEN.empty.memory_format, None),
    _ATEN.new_full.default: (_ATEN.full.default, 2),
    _ATEN.full_like.default: (_ATEN.full.default, 1),
}
"""For each operation, one that needs no tensor, and the place of its fill value."""


def simplify(graph: fx.Graph, flow: Dataflow) -> None:
    """Drop conversions without effect, and make constants independent of tensors. Update `flow`."""
    for node in list(graph.nodes):
        if node.target in _CONVERSIONS and _yields_its_argument(node, flow):
            _replace(graph, node, node.args[0], flow)
        elif node.target in _FILLED and _is_fixed(flow.facts[node].value):
            _replace(graph, node, _filled(graph, node, flow), flow)


def copy_changed_inputs(graph: fx.Graph, flow: Dataflow) -> bool:
    """Put a copy behind each batch leaf that the model writes into. Tell whether there was one."""
    changed = {storage for written in flow.writes.values() for storage in written}
    places = [n for n in graph.find_nodes(op="placeholder") if flow.facts[n].storages & changed]
    for place in places:
        with graph.inserting_after(place):
            copy = graph.call_function(_ATEN.clone.default, (place,))
        for user in [user for user in place.users if user is not copy]:
            user.replace_input_with(place, copy)
    return bool(places)


def _yields_its_argument(node: fx.Node, flow: Dataflow) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and flow.facts[node].value is flow.facts[source].value


def _is_fixed(tensor: Any) -> bool:
    return not any(isinstance(size, torch.SymInt) for size in tensor.shape)


def _filled(graph: fx.Graph, node: fx.Node, flow: Dataflow) -> fx.Node:
    tensor = flow.facts[node].value
    target, place = _FILLED[node.target]  # pyright: ignore[reportArgumentType]
    value = () if place is None else (node.args[place],)
    with graph.inserting_before(node):
        made = graph.call_function(
            target,
            (list(tensor.shape), *value),
            {"dtype": tensor.dtype, "device": tensor.device},
        )
    made.meta = dict(node.meta)
    return made


def _replace(graph: fx.Graph, node: fx.Node, other: Any, flow: Dataflow) -> None:
    fact = flow.facts.pop(node)
    flow.facts.setdefault(other, Fact(fact.value, fact.storages, fact.has_gradient))
    node.replace_all_uses_with(other)
    graph.erase_node(node)
