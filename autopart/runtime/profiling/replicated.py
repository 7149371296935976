"""Masks, position tables and the like: what every stage computes for itself, once for all its layers.

A layer's own program contains them all, because it could be alone on its stage. Where layers are
timed one after the other, each would pay for them again. Here the first layer that needs one
computes it and hands it on, as inside a stage. (A stage that starts further back computes it once
more, which no layer's time contains: a few operations without parameters.)
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx


@dataclass(slots=True)
class SharingProgram:
    """A layer's program, and what it takes from earlier layers and hands to later ones."""

    module: fx.GraphModule
    received: tuple[str, ...]
    outputs: tuple[str, ...]


def share_replicated(programs: Sequence[SharingProgram]) -> None:
    """Change the programs so that each replicated tensor is computed by the first that needs it.

    What a program takes in addition comes first in its arguments; what it hands on, last.
    """
    home: dict[str, int] = {}
    handed_on: dict[str, None] = {}
    for index, program in enumerate(programs):
        graph = program.module.graph
        shared = [node for node in graph.nodes if _is_replicated(node) and node.name in home]
        needed = [node for node in shared if any(not _is_shared(u, home) for u in node.users)]
        for node in graph.nodes:
            if _is_replicated(node):
                home.setdefault(node.name, index)
        handed_on.update(dict.fromkeys(node.name for node in needed))
        program.received = (*(node.name for node in needed), *program.received)
        _receive(graph, needed, {name for name, first in home.items() if first == index})
    for index, program in enumerate(programs):
        extra = tuple(name for name in handed_on if home[name] == index)
        _hand_on(program, extra)
        program.module.recompile()


def _is_replicated(node: fx.Node) -> bool:
    """Whether the node is in no layer, and yields a tensor."""
    computed = node.op == "call_function" and node.meta.get("layer", "") is None
    return computed and isinstance(node.meta.get("val"), torch.Tensor)


def _is_shared(node: fx.Node, home: dict[str, int]) -> bool:
    return _is_replicated(node) and node.name in home


def _receive(graph: fx.Graph, needed: Sequence[fx.Node], own: Collection[str]) -> None:
    """Take what is `needed` and drop what only that needed; what is the program's `own` stays, as it may
    write into what is read."""
    first = next(iter(graph.nodes))
    for node in needed:
        with graph.inserting_before(first):
            place = graph.placeholder(f"{node.name}_replicated")
        node.replace_all_uses_with(place)
    for node in reversed(graph.nodes):
        unused = node.op == "call_function" and node.meta.get("layer", "") is None
        if (unused or node.op == "get_attr") and not node.users and node.name not in own:
            graph.erase_node(node)


def _hand_on(program: SharingProgram, names: Sequence[str]) -> None:
    graph = program.module.graph
    by_name = {node.name: node for node in graph.nodes}
    output = graph.output_node()
    results = cast(tuple[fx.Node, ...], output.args[0])
    output.args = ((*results, *(by_name[name] for name in names)),)
    program.outputs = (*program.outputs, *names)
