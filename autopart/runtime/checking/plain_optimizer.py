"""The plain model's optimizer: torch's own, without the pipeline's code.

An error in the pipeline's optimizer would hide if both models were stepped by it.
"""

from collections.abc import Sequence

import torch
from torch import nn

_HALF = (torch.float16, torch.bfloat16)


class PlainOptimizer:
    """Steps parameters and clears their gradients."""

    def __init__(
        self, name: str, parameters: Sequence[nn.Parameter], lr: float, *, has_masters: bool
    ) -> None:
        """`name` is a key of `LEARNING_RATES`.

        With `has_masters`, parameters in 16 bits have float32 master copies.
        """
        self._pairs = [
            (p, nn.Parameter(p.detach().float()) if has_masters and p.dtype in _HALF else p)
            for p in parameters
            if p.requires_grad
        ]
        masters = [master for _, master in self._pairs]
        self._torch = _torch_optimizer(name, masters, lr)

    def step(self) -> None:
        """Apply the gradients, then clear them."""
        for parameter, master in self._pairs:
            if master is not parameter and parameter.grad is not None:
                master.grad = parameter.grad.float()
        self._torch.step()
        for parameter, master in self._pairs:
            if master is not parameter:
                parameter.detach().copy_(master.detach())
            parameter.grad = master.grad = None


def _torch_optimizer(name: str, masters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(masters, lr=lr)
    if name == "adafactor":
        return torch.optim.Adafactor(masters, lr=lr)
    return torch.optim.SGD(masters, lr=lr, momentum=0.9 if name == "sgd-momentum" else 0.0)
