"""What a model is to autopart: a builder, examples of its inputs, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The functions of a model file; torch is imported by them, not by this class."""

    name: str
    """What the user typed: `model.py`, `package.module:build_large`, `zoo:gpt2-tiny`."""
    build_model: Callable[[], nn.Module]
    example_inputs: Callable[[int], Any]
    """Inputs of one microbatch of the given size: a tuple (positional), a dict (keywords), or a
    lone tensor."""
    example_target: Callable[[int], Any] | None = None
    loss_fn: Callable[[Any, Any], Any] | None = None
    """`loss_fn(output, target)` as a scalar tensor; None for a model that returns its own loss."""
