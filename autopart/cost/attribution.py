"""What part of a stage's stash and workspace is there for its loss, and for layers that are recomputed or offloaded.

Each is counted among stash or workspace already: this says whose it is.
"""

from collections.abc import Collection
from typing import NamedTuple

from autopart.graph import LOSS, LayerGraph
from autopart.stage_load import (
    StageLoad,
    largest_transient,
    pending_gradients,
    waiting_gradients,
    whole_transients,
)
from autopart.ways import StageWays, kept_inside, way_of


class Share(NamedTuple):
    """Bytes of one rank."""

    recomputed: int
    """Of the workspace: what the largest transient grows by as stash comes back."""
    loss_stash: int
    """Of the stash of one microbatch: the logits, and what the loss keeps inside."""
    loss_workspace: int
    """Of the workspace: what the loss's transient is larger than any other layer's."""


def share_of(
    graph: LayerGraph, members: Collection[int], ways: StageWays, load: StageLoad
) -> Share:
    """The shares of a stage with the layers at `members`, which go the given ways in `load`."""
    layers = {graph.layers[at].name: graph.layers[at] for at in members}
    again = {graph.layers[at].name for at in (*ways.recompute, *ways.selective)}
    losses = {name for name, layer in layers.items() if layer.kind == LOSS}
    transients, places = whole_transients(graph), sorted(members)
    pending, waits = pending_gradients(graph, places), waiting_gradients(graph, places)
    own = [transients[at].beside(size) for at, size in zip(places, pending, strict=True)]
    largest = largest_transient(own, waits)
    without = [
        of._replace(most_bytes=0) if graph.layers[at].kind == LOSS else of
        for at, of in zip(places, own, strict=True)
    ]
    logits = sum(
        value.bytes
        for value in graph.values
        if losses.intersection(value.consumers)
        and (value.producer not in layers or value.kept_by or losses & again)
    )
    return Share(
        recomputed=load.workspace_bytes - largest,
        loss_stash=logits
        + sum(
            kept_inside(graph.layers[at], way_of(ways, at))
            for at in members
            if graph.layers[at].name in losses
        ),
        loss_workspace=largest - largest_transient(without, waits),
    )
