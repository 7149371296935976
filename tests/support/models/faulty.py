"""A small model whose rank 1 fails in the third forward of its second layer.

The builder's name tells how: ``faulty.py:killed``, ``faulty.py:hanging``, …
"""

import ctypes
import os
import signal
import time
from itertools import count
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

_calls = count(1)


def _raise() -> None:
    raise ValueError("no room left on the device")


def _hang() -> None:
    """Hang, and tell by a file that the hang has begun."""
    told = os.environ.get("AUTOPART_TESTS_HANGING")
    if told:
        Path(told).touch()
    time.sleep(600)


FATES = {
    "raising": _raise,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "leaving": lambda: os._exit(3),
    "hanging": _hang,
    "stuck": lambda: ctypes.PyDLL(None).sleep(600),  # keeps the interpreter's lock
    "well": lambda: None,
}


@torch.library.custom_op("autopart_tests::strike", mutates_args=())
def strike(x: torch.Tensor, fate: str) -> torch.Tensor:
    if os.environ.get("RANK") == "1" and next(_calls) == 3:
        FATES[fate]()
    return x.clone()


strike.register_fake(lambda x, fate: torch.empty_like(x))
strike.register_autograd(lambda ctx, gradient: (gradient, None))


class Struck(nn.Module):
    def __init__(self, fate: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.fate = fate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return strike(self.linear(x), self.fate)


def _build(fate: str) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), Struck(fate), nn.Linear(8, 8))


def raising() -> nn.Module:
    return _build("raising")


def killed() -> nn.Module:
    return _build("killed")


def leaving() -> nn.Module:
    return _build("leaving")


def hanging() -> nn.Module:
    return _build("hanging")


def stuck() -> nn.Module:
    return _build("stuck")


def well() -> nn.Module:
    return _build("well")


def raising_while_built() -> nn.Module:
    if os.environ.get("RANK") == "1":
        raise OSError("weights.bin is gone")
    return _build("well")


def killed_while_built() -> nn.Module:
    if os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return _build("well")


def example_inputs(microbatch_size: int) -> tuple[torch.Tensor]:
    return (torch.randn(microbatch_size, 8),)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, 8)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target)
