"""The optimizers that a plan's memory is reckoned for, made by torch."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

LEARNING_RATES = {"adamw": 1e-3, "sgd-momentum": 1e-2, "adafactor": 1e-2, "sgd": 1e-2}
"""Used where the caller names none; the keys are those of `training.MOMENTS`."""

_PARTS, _PART_BYTES = 8, 1 << 20
"""About so many parts of a step, of at least so many bytes each."""

_Pair = tuple[nn.Parameter, nn.Parameter]
"""A parameter, and its master copy or itself."""

_HALF = (torch.bfloat16, torch.float16)


class Optimizer:
    """Steps parameters, those in 16 bits through a float32 master copy, as the plan counts them."""

    def __init__(self, name: str, parameters: Sequence[nn.Parameter], lr: float | None) -> None:
        """`name` is a key of `LEARNING_RATES`, and so is the default of `lr`."""
        self.name = name
        self.lr = LEARNING_RATES[name] if lr is None else lr
        self._parameters = [p for p in parameters if p.requires_grad]
        self._masters = [_master(p) for p in self._parameters]
        self._parts = _in_parts(list(zip(self._parameters, self._masters, strict=True)))
        self._torch = _torch_optimizer(name, self._masters, self.lr) if self._masters else None

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """What it keeps beside the parameters: master copies, and moments once a step was made."""
        own = {id(parameter) for parameter in self._parameters}
        copies = (master for master in self._masters if id(master) not in own)
        return (*copies, *self._kept(counters=False))

    @property
    def counters(self) -> tuple[torch.Tensor, ...]:
        """Its counts of steps, a number for each parameter, which torch keeps on the host."""
        return tuple(self._kept(counters=True))

    def _kept(self, *, counters: bool) -> Iterator[torch.Tensor]:
        for of in self._torch.state.values() if self._torch is not None else ():
            for name, value in of.items():
                if isinstance(value, torch.Tensor) and (name == "step") == counters:
                    yield value

    def step(self) -> None:
        """Apply the gradients and clear them, part by part: what a part needs for a while, float32 copies
        of its gradients and the optimizer's own scratch, is gone before the next one's is there."""
        if self._torch is None:
            return
        waiting = {id(parameter): parameter.grad for parameter in self._parameters}
        for parameter in self._parameters:
            parameter.grad = None
        for part in self._parts:
            for parameter, master in part:
                gradient = waiting.pop(id(parameter))
                master.grad = None if gradient is None else gradient.to(master.dtype)
                del gradient
            self._torch.step()
            self._torch.zero_grad(set_to_none=True)
            with torch.no_grad():
                for parameter, master in part:
                    if master is not parameter:
                        parameter.copy_(master)


def _in_parts(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Parameters with what is stepped for them, in as few parts as a step's scratch needs: all at once
    in float32 on a CPU, which works on one parameter after the other anyway."""
    if all(p is master and p.device.type == "cpu" for p, master in pairs):
        return [list(pairs)]
    most = max(_PART_BYTES, sum(master.nbytes for _, master in pairs) // _PARTS)
    parts: list[list[_Pair]] = []
    room = 0
    for pair in pairs:
        if not parts or pair[1].nbytes > room:
            parts.append([])
            room = most
        parts[-1].append(pair)
        room -= pair[1].nbytes
    return parts


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().float()) if parameter.dtype in _HALF else parameter


def _torch_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9 if name == "sgd-momentum" else 0.0)
