"""Calls at the borders of layers in a stage's graph.

    before(a)  a's operations  behind(a, its results)  before(b)  b's operations  behind(b, ...)

Borders stand around whole layers, so the second forward of a recomputed layer has none.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import fx, nn

from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.transforms.layer_policies import in_layer_order


class Borders(Protocol):
    """Told about each layer's start and end in a forward."""

    def before(self, layer: str) -> None:
        """The layer's first operation comes next."""
        ...

    def behind(self, layer: str, made: Sequence[torch.Tensor]) -> None:
        """The layer's last operation is done; other layers or stages read `made`."""
        ...


def mark_borders(program: StageProgram, layers: Collection[str], borders: Borders) -> None:
    """Add the calls for each of `layers` to the stage's graph, in place.

    Activation policies and split backwards must be there already.
    """
    in_layer_order(program)
    graph, own = program.module.graph, dict[str, list[fx.Node]]()
    for node in graph.nodes:
        name = node.meta.get("layer")
        if name in layers and node.op in ("call_function", "call_module"):
            own.setdefault(name, []).append(node)
    for place, (name, nodes) in enumerate(own.items()):
        program.module.add_module(f"before_{place}", _Before(name, borders))
        program.module.add_module(f"behind_{place}", _Behind(name, borders))
        inside = set(nodes)
        made = tuple(node for node in nodes if any(user not in inside for user in node.users))
        with graph.inserting_before(nodes[0]):
            graph.call_module(f"before_{place}")
        with graph.inserting_after(nodes[-1]):
            graph.call_module(f"behind_{place}", made)
    program.module.recompile()


class _Before(nn.Module):
    def __init__(self, name: str, borders: Borders) -> None:
        super().__init__()
        self._name, self._borders = name, borders

    def forward(self) -> None:
        self._borders.before(self._name)


class _Behind(nn.Module):
    def __init__(self, name: str, borders: Borders) -> None:
        super().__init__()
        self._name, self._borders = name, borders

    def forward(self, *made: object) -> None:
        tensors = [one for one in made if isinstance(one, torch.Tensor)]
        self._borders.behind(self._name, tensors)
