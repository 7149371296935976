"""Weights after further updates, guessed from an optimizer's state.

Each further update is taken to change the weights as the last one did, without weight decay:

    SGD with momentum    lr * m, with the momentum buffer m
    Adam, AdamW          lr * m' / (sqrt(v') + eps), with m' = m / (1 - b1^t), v' = v / (1 - b2^t)

The rules are those of PipeOptim (Guan et al., 2023), as the page of the authors' code states them.
The first is also SpecTrain's (Chen et al., 2018), whose smoothed gradient (1 - g) m has its own
learning rate lr / (1 - g). The second is also XPipe's (Guan et al., 2019), from memory; fairscale's
AMPNet benchmark divides m by 1 - b1 and v by 1 - b2 there.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from autopart.errors import UsageError

_PIECE = 1 << 18
"""Elements that are predicted at once, so that a prediction needs little memory."""


class WeightPrediction:
    """Predicts the parameters that a torch optimizer steps: SGD with momentum, Adam or AdamW."""

    def __init__(self, stepper: torch.optim.Optimizer) -> None:
        """Raises UsageError for optimizers whose next update is not known from their state."""
        self._stepper = stepper
        self._groups = {id(p): group for group in stepper.param_groups for p in group["params"]}
        for group in stepper.param_groups:
            _check(stepper, group)

    def weights(self, parameter: nn.Parameter, updates: int, into: torch.Tensor) -> None:
        """Write the parameter's weights after `updates` more updates into a tensor of its shape.

        Before the first update they are the current weights.
        """
        group, state = self._groups[id(parameter)], self._stepper.state.get(parameter, {})
        now = parameter.detach()
        if "exp_avg" in state:
            step, (beta1, beta2) = float(state["step"]), group["betas"]
            change, square = state["exp_avg"], state["exp_avg_sq"]
            factor = float(group["lr"]) / (1.0 - beta1**step)
            root = math.sqrt(1.0 - beta2**step)
            for w, m, v, out in _pieces(now, change, square, into):
                size = v.sqrt().div_(root).add_(group["eps"])
                out.copy_(w.addcdiv(m, size, value=-updates * factor))
        elif state.get("momentum_buffer") is not None:
            for w, m, out in _pieces(now, state["momentum_buffer"], into):
                out.copy_(w.add(m, alpha=-updates * float(group["lr"])))
        else:
            into.copy_(now)


def _check(stepper: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    name = type(stepper).__name__
    if isinstance(stepper, torch.optim.SGD):
        known = group["momentum"] > 0 and not group["nesterov"]
        name = "SGD without momentum, or with Nesterov's,"
    else:
        known = isinstance(stepper, torch.optim.Adam) and not group["amsgrad"]
        name = f"{name} with amsgrad" if group.get("amsgrad") else name
    if not known or group["maximize"]:
        raise UsageError(
            f"weights cannot be predicted from the state of {name}; take SGD with momentum, Adam or "
            "AdamW, without maximize"
        )


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Equal parts of tensors with one shape, as views; complex numbers as pairs of real ones."""
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    if all(t.is_contiguous() for t in real):
        real = [t.view(-1) for t in real]
    rows = [torch.atleast_1d(t) for t in real]
    count = len(rows[0])
    each = max(1, _PIECE * count // max(1, rows[0].numel()))
    for at in range(0, count, each):
        yield tuple(t[at : at + each] for t in rows)
