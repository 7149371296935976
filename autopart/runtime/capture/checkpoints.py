"""Gradient checkpointing that the model does itself, with ``torch.utils.checkpoint``.

A graph cannot contain it. So the trace leaves it out and marks the nodes under it: their layers are
recomputed by the plan.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.traceback import annotate, preserve_node_meta
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as torch_checkpoint

_MARK = "autopart_checkpointed"


class CheckpointedLayers(NamedTuple):
    """Layers that the model checkpoints itself."""

    whole: tuple[str, ...]
    """Layers whose operations are all under a checkpoint."""
    partly: tuple[str, ...]
    """Layers with operations under a checkpoint, and others."""


@contextmanager
def checkpoints_left_out() -> Generator[None]:
    """Run checkpointed functions plainly in the block. A trace marks the nodes that they make."""
    # `checkpoint` itself may be imported by name, so the two functions that it calls are replaced.
    kept = torch_checkpoint._checkpoint_without_reentrant_generator
    reentrant = torch_checkpoint.CheckpointFunction
    torch_checkpoint._checkpoint_without_reentrant_generator = _marking
    torch_checkpoint.CheckpointFunction = _Reentrant  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with preserve_node_meta():
            yield
    finally:
        torch_checkpoint._checkpoint_without_reentrant_generator = kept
        torch_checkpoint.CheckpointFunction = reentrant


def _marking(*_: Any, **__: Any) -> Generator[None]:
    with annotate({_MARK: True}):
        yield


class _Reentrant:
    """Stands in for torch's autograd function of the reentrant checkpoint."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve_random_state: bool, *args: Any) -> Any:
        needs_gradient = any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
        with annotate({_MARK: True}):
            made = function(*args)
            # Torch gives no gradients through a reentrant checkpoint whose inputs need none.
            return _with_gradients(made) if needs_gradient else _detached(made)


def _with_gradients(made: Any) -> Any:
    """An autograd function gives gradients to a tensor and to tensors in a tuple, and to no others."""
    if isinstance(made, torch.Tensor):
        return made
    if isinstance(made, tuple):
        return tuple(x if isinstance(x, torch.Tensor) else _detached(x) for x in made)
    return _detached(made)


def _detached(made: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, made)


def checkpointed_layers(
    graph: fx.Graph, layers: Sequence[str], layer_of: Mapping[str, str]
) -> CheckpointedLayers:
    """Return the layers that have marked operations, in the order of `layers`."""
    marks: dict[str, set[bool]] = {}
    for node in graph.nodes:
        if node.op in ("call_function", "call_module") and node.name in layer_of:
            is_marked = _MARK in (node.meta.get("custom") or {})
            marks.setdefault(layer_of[node.name], set()).add(is_marked)
    return CheckpointedLayers(
        whole=tuple(name for name in layers if marks.get(name) == {True}),
        partly=tuple(name for name in layers if marks.get(name) == {True, False}),
    )
