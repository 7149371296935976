"""Hashes that two equal layers, or two equal captured graphs, share.

A layer's fingerprint covers its operations, their scalar arguments, shapes, dtypes and connections,
but no names: identical blocks share it. A graph's hash covers the names too. Neither depends on
parameter values or on the device.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload

from autopart.runtime.models.attributes import lookup

_TRANSPARENT = frozenset(
    (
        torch.ops.aten.contiguous.default,
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten.detach_.default,
        torch.ops.aten.alias.default,
    )
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Memory address in an unnamed object's text."""

Describe = Callable[[fx.Node], object]


def layer_fingerprint(
    module: fx.GraphModule,
    nodes: Iterable[fx.Node],
    outputs: Collection[fx.Node],
    has_gradient: Mapping[fx.Node, bool],
) -> str:
    """Return the hash of a layer's own program: `nodes` in order, with `outputs` handed on."""
    numbers: dict[fx.Node, int] = {}
    lines: list[str] = []
    inside = list(nodes)
    made = {node for node in inside if node.op in ("call_function", "call_module")}

    def describe(node: fx.Node) -> object:
        if node not in numbers:
            numbers[node] = len(numbers)
            grad = has_gradient.get(node, False) if node not in made else ""
            source = f"{_source(module, node)}{_hooked(module, node)}"
            lines.append(f"{numbers[node]} {source} {_meta(node)} {grad}")
        return numbers[node]

    for node in inside:
        if node in made:
            call = f"{_target(module, node)} {_text((node.args, node.kwargs), describe)}"
            numbers.setdefault(node, len(numbers))
            handed_on = f"out {has_gradient.get(node)}" if node in outputs else ""
            lines.append(f"{numbers[node]} = {call} {_meta(node)} {handed_on}")
    return _digest(lines)


def graph_hash(module: fx.GraphModule, layer_of: Mapping[str, str], state: Collection[str]) -> str:
    """Return the hash over the layers' computation in a captured graph.

    It includes the names of inputs, layers and `state` (parameters and buffers). The exporter
    records some operations differently on different devices. Some make masks and constants, others
    have no effect where a tensor already has the layout. These do not count. A plan made on one
    device can therefore be compared with the model on another device.
    """
    numbers: dict[fx.Node, object] = {}
    lines: list[str] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            numbers[node] = node.name
            lines.append(f"input {node.name} {_meta(node)}")
        elif node.op == "get_attr":
            named = node.target if node.target in state else "constant"
            numbers[node] = f"{named} {_source(module, node)}"
        elif node.op != "output" and node.name not in layer_of:
            numbers[node] = f"constant buffer {_meta(node)} False"
        elif node.target in _TRANSPARENT and isinstance(node.args[0], fx.Node):
            numbers[node] = numbers[node.args[0]]
        else:
            numbers[node] = len(lines)
            arguments = _text((node.args, node.kwargs), numbers.__getitem__)
            call = f"{_target(module, node)} {arguments}"
            lines.append(f"{layer_of.get(node.name)} {node.op} {call} {_meta(node)}")
    return _digest(lines)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _source(module: fx.GraphModule, node: fx.Node) -> str:
    """Describe an input, an attribute or another layer's value."""
    if node.op == "get_attr":
        value = lookup(module, str(node.target))
        if isinstance(value, fx.GraphModule):
            return f"region {_region_hash(value)}"
        kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
        return f"{kind} {_shape(value)} {value.requires_grad}"
    return "input" if node.op == "placeholder" else "value"


def _hooked(module: fx.GraphModule, node: fx.Node) -> str:
    """Mark a parameter with gradient hooks. Its layer's backward cannot be split."""
    value = lookup(module, str(node.target)) if node.op == "get_attr" else None
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return " hooked" if any(getattr(value, name, None) for name in hooks) else ""


def _region_hash(region: fx.GraphModule) -> str:
    return graph_hash(region, {node.name: "" for node in region.graph.nodes}, ())


def _target(module: fx.GraphModule, node: fx.Node) -> str:
    target = node.target
    if node.op == "call_module":
        inside = lookup(module, str(target))
        state = [_shape(value) for value in (*inside.parameters(), *inside.buffers())]
        return f"module {type(inside).__qualname__} {_ADDRESS.sub('', repr(inside))} {state}"
    if isinstance(target, OpOverload | HigherOrderOperator):
        return str(target)
    named = getattr(target, "__qualname__", type(target).__qualname__)  # an object has no name
    return f"{getattr(target, '__module__', '')}.{named}"


def _meta(node: fx.Node) -> str:
    value = node.meta.get("val")
    return _shape(value) if isinstance(value, torch.Tensor) else ""


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _text(argument: Any, describe: Describe) -> str:
    """Return an argument as text, without parts that differ between processes or devices."""
    if isinstance(argument, fx.Node):
        return f"%{describe(argument)}"
    if isinstance(argument, tuple | list):
        return "[" + ", ".join(_text(a, describe) for a in argument) + "]"
    if isinstance(argument, dict):
        return "{" + ", ".join(f"{k}: {_text(a, describe)}" for k, a in argument.items()) + "}"
    if isinstance(argument, slice):
        return f"slice {_text((argument.start, argument.stop, argument.step), describe)}"
    if isinstance(argument, torch.device):
        return "device"
    return _ADDRESS.sub("", repr(argument))
