"""Autocast as a graph was captured under it, and must run under it."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn


class Autocast(NamedTuple):
    """Torch's autocast on a kind of device: which operations it casts differs between them."""

    device_type: str
    dtype: torch.dtype


def autocast_of(module: nn.Module, dtype: torch.dtype | None) -> Autocast | None:
    """To `dtype` where the module's parameters stand."""
    if dtype is None:
        return None
    devices = (parameter.device.type for parameter in module.parameters())
    return Autocast(next(devices, "cpu"), dtype)


def entered(autocast: Autocast | None) -> AbstractContextManager[object]:
    """The block to compute forward in; backward takes the dtypes of its forward by itself."""
    return nullcontext() if autocast is None else torch.autocast(*autocast)
