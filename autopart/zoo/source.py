"""A model for autopart: a builder, example inputs, and a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The functions in a model file. They import torch; this class does not."""

    name: str
    """The model as the user typed it: `model.py`, `package.module:build_large`, `zoo:gpt2-tiny`."""
    build_model: Callable[[], nn.Module]
    example_inputs: Callable[[int], Any]
    """Inputs for one microbatch with the given size: a tuple (positional), a dict (keywords), or a
    single tensor."""
    example_target: Callable[[int], Any] | None = None
    loss_fn: Callable[[Any, Any], Any] | None = None
    """`loss_fn(output, target)`, a scalar tensor; None for a model that returns its own loss."""
    tp_plan: Mapping[str, str] | None = None
    """How weights are sharded over a tensor group: patterns of names, each with a style. None leaves it to autopart."""
