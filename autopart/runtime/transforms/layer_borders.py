"""Calls at the borders of layers in a stage's graph.

    before(a)  a's operations  behind(a, its results)  before(b)  b's operations  behind(b, ...)

Borders stand around whole layers, so the second forward of a recomputed layer has none.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import fx

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
    # Calls of modules would pass the results through copies where a user has hooks on all modules.
    vars(program.module)["layer_borders"] = borders
    with graph.inserting_before(next(iter(graph.nodes))):
        told = graph.create_node("get_attr", "layer_borders")
    for name, nodes in own.items():
        inside = set(nodes)
        made = tuple(node for node in nodes if any(user not in inside for user in node.users))
        with graph.inserting_before(nodes[0]):
            graph.call_function(_before, (told, name))
        with graph.inserting_after(nodes[-1]):
            graph.call_function(_behind, (told, name, *made))
    program.module.recompile()


def _before(borders: Borders, name: str) -> None:
    borders.before(name)


def _behind(borders: Borders, name: str, *made: object) -> None:
    borders.behind(name, [one for one in made if isinstance(one, torch.Tensor)])
