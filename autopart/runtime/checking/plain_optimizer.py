"""The plain model's optimizer: torch's own, without the pipeline's code.

An error in the pipeline's optimizer would hide if both models were stepped by it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

_HALF = (torch.float16, torch.bfloat16)


class Stepped(NamedTuple):
    """The weights that an optimizer steps, and what one more update like the last takes off them."""

    value: torch.Tensor
    change: torch.Tensor


class PlainOptimizer:
    """Steps parameters and clears their gradients."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[nn.Parameter],
        lr: float,
        *,
        has_masters: bool,
        clip_norm: float | None = None,
    ) -> None:
        """`name` is a key of `LEARNING_RATES`.

        With `has_masters`, parameters in 16 bits have float32 master copies. `clip_norm` is the largest
        norm of all gradients together, by torch's own clipping; None leaves them as they are.
        """
        self._clip_norm, self._parameters = clip_norm, list(parameters)
        self._pairs = [
            (p, nn.Parameter(p.detach().float()) if has_masters and p.dtype in _HALF else p)
            for p in parameters
            if p.requires_grad
        ]
        masters = [master for _, master in self._pairs]
        self._torch = _torch_optimizer(name, masters, lr)

    def clip(self) -> None:
        """Scale the gradients down to the largest norm, where there is one. Call it before `step`."""
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)

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

    def stepped(self) -> dict[int, Stepped]:
        """The weights that are stepped and their next change, by the parameter's id.

        Weight decay is left out of the change. The formulas are written here again, for SGD with
        momentum and AdamW; other optimizers have no change.
        """
        found: dict[int, Stepped] = {}
        for parameter, master in self._pairs:
            state, (group,) = self._torch.state.get(master, {}), self._torch.param_groups
            change = torch.zeros_like(master)
            if "momentum_buffer" in state:
                change = group["lr"] * state["momentum_buffer"]
            elif "exp_avg" in state:
                (one, two), t = group["betas"], int(state["step"])
                mean = state["exp_avg"] / (1 - one**t)
                variance = state["exp_avg_sq"] / (1 - two**t)
                change = group["lr"] * mean / (variance**0.5 + group["eps"])
            found[id(parameter)] = Stepped(master.detach().clone(), change)
        return found


def _torch_optimizer(name: str, masters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(masters, lr=lr)
    if name == "adafactor":
        return torch.optim.Adafactor(masters, lr=lr)
    return torch.optim.SGD(masters, lr=lr, momentum=0.9 if name == "sgd-momentum" else 0.0)
