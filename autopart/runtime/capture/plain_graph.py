"""The exporter's graph, copied into a plain one: user's names, no guards, opened regions.

The exporter keeps code under ``no_grad`` or ``autocast`` as one sub-graph call, however many
modules it spans. The copy opens these regions, so that layers can be told apart. Under ``no_grad``
it detaches the region's inputs. Under autocast it puts each operation that autocast changes into
its own region.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.runtime.models.attributes import (
    attach,
    lookup,
    persistent_buffers,
    user_name,
    user_names,
)

_NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GUARDS = "_assert_tensor_metadata"


@dataclass(frozen=True, slots=True)
class _Around:
    """Surroundings in which nodes are copied."""

    owner: fx.GraphModule
    autocast: tuple[Any, ...] | None = None
    """Device, dtype, on or off, cache or none; None where there is no autocast."""


class Copier:
    """Copies nodes from the exporter's graph into a plain one."""

    def __init__(self, model: nn.Module, module: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.user_names = user_names(model)
        self._persistent = persistent_buffers(model)
        self._module = module
        self._attributes: dict[str, fx.Node] = {}
        self._num_regions = 0

    def copy_nodes(self, owner: fx.GraphModule) -> list[Any]:
        """Copy all nodes in `owner` and return its outputs. Its placeholders must be in `env`."""
        return self._copy_all(_Around(owner))

    def _copy_all(self, around: _Around) -> list[Any]:
        for node in around.owner.graph.nodes:
            if node.op not in ("placeholder", "output"):
                self._copy(node, around)
        returned = around.owner.graph.output_node().args[0]
        flat, _ = pytree.tree_flatten(returned, is_leaf=lambda x: isinstance(x, fx.Node))
        return [self.env[out] for out in flat]

    def _copy(self, node: fx.Node, around: _Around) -> None:
        if node.op == "call_module" or _GUARDS in str(node.target):
            return  # the exporter's own guards, which would also forbid another dtype
        if node.op == "get_attr":
            self.env[node] = self._attribute(node, around.owner)
        elif node.target is operator.getitem and isinstance(self._of(node.args[0]), list):
            self.env[node] = self._of(node.args[0])[node.args[1]]
        elif node.target is _NO_GRAD and _turns_off(node, around.owner):
            self.env[node] = self._opened(node, 1, around, detach=True)
        elif node.target is _AUTOCAST:
            inside = _Around(around.owner, autocast=tuple(node.args[:4]))
            self.env[node] = self._opened(node, 4, inside)
        elif around.autocast is not None and _autocast_matters(node):
            self.env[node] = self._region(node, around.autocast)
        else:
            self.env[node] = self.graph.node_copy(node, lambda n: self.env[n])

    def _of(self, argument: Any) -> Any:
        return self.env.get(argument) if isinstance(argument, fx.Node) else None

    def _attribute(self, node: fx.Node, owner: fx.GraphModule) -> fx.Node:
        value = lookup(owner, str(node.target))
        name = self.user_names.get(id(value)) or user_name(str(node.target))
        if isinstance(value, fx.GraphModule):
            name = self._region_name()
        if name not in self._attributes:
            attach(self._module, name, value, persistent=id(value) in self._persistent)
            self._attributes[name] = self.graph.create_node("get_attr", name, name=name)
            self._attributes[name].meta = dict(node.meta)
        return self._attributes[name]

    def _region_name(self) -> str:
        self._num_regions += 1
        return f"region_{self._num_regions}"

    def _opened(
        self, node: fx.Node, place: int, around: _Around, *, detach: bool = False
    ) -> list[Any]:
        """Inline a region. Its graph is argument number `place`, and its inputs follow."""
        inner = _inner(node, place, around.owner)
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for inside, argument in zip(places, node.args[place + 1 :], strict=True):
            given = self.env[argument] if isinstance(argument, fx.Node) else argument
            if detach and isinstance(given, fx.Node) and _is_tensor(argument):
                given = self.graph.call_function(torch.ops.aten.detach.default, (given,))
                given.meta = {"val": inside.meta.get("val")}
            self.env[inside] = given
        return self._copy_all(_Around(inner, around.autocast))

    def _region(self, node: fx.Node, autocast: tuple[Any, ...]) -> fx.Node:
        """Put one operation into its own autocast region."""
        inner = fx.Graph()
        places = {n: inner.placeholder(n.name) for n in node.all_input_nodes}
        inner.output(inner.node_copy(node, lambda n: places[n]))
        name = self._region_name()
        attach(self._module, name, fx.GraphModule(nn.Module(), inner))
        region = self.graph.create_node("get_attr", name, name=name)
        given = [self.env[n] for n in node.all_input_nodes]
        made = self.graph.call_function(_AUTOCAST, (*autocast, region, *given))
        made.meta = dict(node.meta)
        return made


def _inner(node: fx.Node, place: int, owner: fx.GraphModule) -> fx.GraphModule:
    region = node.args[place]
    assert isinstance(region, fx.Node)
    return lookup(owner, str(region.target))


def _turns_off(node: fx.Node, owner: fx.GraphModule) -> bool:
    """Tell whether gradients are off in the whole region. Other regions stay closed."""
    inner = _inner(node, 1, owner)
    on_again = any(n.target is _NO_GRAD and n.args[0] is True for n in inner.graph.nodes)
    return node.args[0] is False and not on_again


def _autocast_matters(node: fx.Node) -> bool:
    """Tell whether the operation, without autocast, fails or gives another dtype."""
    expected = node.meta.get("val")
    if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
        return False
    inputs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))  # pyright: ignore
    args, kwargs = inputs  # pyright: ignore[reportGeneralTypeIssues]
    try:
        with expected.fake_mode, torch.no_grad():  # pyright: ignore[reportAttributeAccessIssue]
            plain = node.target(*args, **kwargs)  # pyright: ignore
    except (RuntimeError, TypeError):  # mixed dtypes, which autocast would have made equal
        return True
    return not isinstance(plain, torch.Tensor) or plain.dtype != expected.dtype


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)
