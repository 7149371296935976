"""Replicated tensors (masks, position tables), computed once for all layers in a stage.

Every stage computes these tensors for itself. A layer's own program contains them all, because it
could be alone on its stage. If layers are timed one after another, each would pay for them again.
Here the first layer that needs one computes it and hands it on, as inside a stage. A later stage
computes it once more, and no layer's time contains that: a few operations without parameters.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx


@dataclass(slots=True)
class SharingProgram:
    """A layer's program, its inputs from earlier layers and its outputs for later ones."""

    module: fx.GraphModule
    received: tuple[str, ...]
    outputs: tuple[str, ...]


def share_replicated(programs: Sequence[SharingProgram]) -> None:
    """Change the programs so that only the first one that needs a replicated tensor computes it.

    Additional inputs come first among a program's arguments, additional outputs last.
    """
    home: dict[str, int] = {}
    handed_on: dict[str, None] = {}
    for index, program in enumerate(programs):
        graph = program.module.graph
        # Step 1: take tensors that an earlier program computes, if a node of this one uses them.
        shared = [node for node in graph.nodes if _is_replicated(node) and node.name in home]
        needed = [node for node in shared if any(not _is_shared(u, home) for u in node.users)]
        for node in graph.nodes:
            if _is_replicated(node):
                home.setdefault(node.name, index)
        handed_on.update(dict.fromkeys(node.name for node in needed))
        program.received = (*(node.name for node in needed), *program.received)
        _receive(graph, needed, {name for name, first in home.items() if first == index})
    for index, program in enumerate(programs):
        # Step 2: return the tensors that later programs take.
        extra = tuple(name for name in handed_on if home[name] == index)
        _hand_on(program, extra)
        program.module.recompile()


def _is_replicated(node: fx.Node) -> bool:
    """Tell whether the node belongs to no layer and yields a tensor."""
    computed = node.op == "call_function" and node.meta.get("layer", "") is None
    return computed and isinstance(node.meta.get("val"), torch.Tensor)


def _is_shared(node: fx.Node, home: dict[str, int]) -> bool:
    return _is_replicated(node) and node.name in home


def _receive(graph: fx.Graph, needed: Sequence[fx.Node], own: Collection[str]) -> None:
    """Take the `needed` tensors as inputs, and drop nodes that only they needed.

    The program's `own` nodes stay, because they may write into tensors that are read.
    """
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
