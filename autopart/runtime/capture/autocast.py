"""Autocast: a graph captured under it must also run under it."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn


class Autocast(NamedTuple):
    """Torch's autocast for one kind of device. Each kind casts its own set of operations."""

    device_type: str
    dtype: torch.dtype


def autocast_of(module: nn.Module, dtype: torch.dtype | None) -> Autocast | None:
    """Return autocast to `dtype` on the device that has the module's parameters."""
    if dtype is None:
        return None
    devices = (parameter.device.type for parameter in module.parameters())
    return Autocast(next(devices, "cpu"), dtype)


def entered(autocast: Autocast | None) -> AbstractContextManager[object]:
    """Return the context for a forward. Its backward takes the forward's dtypes by itself."""
    return nullcontext() if autocast is None else torch.autocast(*autocast)
