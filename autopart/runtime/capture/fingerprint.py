"""What makes two layers, or two captured graphs, the same.

A layer's fingerprint holds its operations, their scalar arguments, shapes, dtypes and how they
hang together, and no names: identical blocks share it. A graph's hash holds the names too. Neither
depends on the values of parameters, nor on the device.
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
"""Where an object without a name lies in memory."""

Describe = Callable[[fx.Node], object]


def layer_fingerprint(
    module: fx.GraphModule,
    nodes: Iterable[fx.Node],
    outputs: Collection[fx.Node],
    has_gradient: Mapping[fx.Node, bool],
) -> str:
    """The hash of a layer's own program: `nodes` in order, of which `outputs` are handed on."""
    numbers: dict[fx.Node, int] = {}
    lines: list[str] = []
    inside = list(nodes)
    made = {node for node in inside if node.op in ("call_function", "call_module")}

    def describe(node: fx.Node) -> object:
        if node not in numbers:
            numbers[node] = len(numbers)
            grad = has_gradient.get(node, False) if node not in made else ""
            lines.append(f"{numbers[node]} {_source(module, node)} {_meta(node)} {grad}")
        return numbers[node]

    for node in inside:
        if node in made:
            call = f"{_target(module, node)} {_text((node.args, node.kwargs), describe)}"
            numbers.setdefault(node, len(numbers))
            handed_on = f"out {has_gradient.get(node)}" if node in outputs else ""
            lines.append(f"{numbers[node]} = {call} {_meta(node)} {handed_on}")
    return _digest(lines)


def graph_hash(module: fx.GraphModule, layer_of: Mapping[str, str], state: Collection[str]) -> str:
    """The hash of what the layers of a captured graph do, with the names of inputs, layers and of
    `state`: parameters and buffers.

    The exporter records some operations differently on different devices: those that make masks
    and constants, and those that do nothing where a tensor has the layout already. They do not
    count, so that a plan made on one device can be held against the model on another.
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
    """What a node that computes nothing is."""
    if node.op == "get_attr":
        value = lookup(module, str(node.target))
        if isinstance(value, fx.GraphModule):
            return f"region {_region_hash(value)}"
        kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
        return f"{kind} {_shape(value)} {value.requires_grad}"
    return "input" if node.op == "placeholder" else "value"


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
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def _meta(node: fx.Node) -> str:
    value = node.meta.get("val")
    return _shape(value) if isinstance(value, torch.Tensor) else ""


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _text(argument: Any, describe: Describe) -> str:
    """An argument without anything that differs between processes or devices."""
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
