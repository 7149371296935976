"""Is the pipeline the plain model? Losses, gradients, parameters and buffers, tensor by tensor.

    gradients of the first step    max |mine - plain| <= t max |plain|, or rounding
    parameters after that step     the same (not with AdamW)
    parameters after n steps       rms(mine - plain) <= n d rms(plain - start)
    losses                         |mine - plain| <= t |plain| + n d |plain - first|
    buffers after the last step    as gradients (without replicas only)

t is the tolerance and d the drift of the model's dtype (four times that with AdamW). A tensor whose true gradient is zero (a
key's bias in attention, a bias before BatchNorm) is rounding noise in both runs, with no digits to
compare: a difference of up to `FLOOR_EPSILONS` machine epsilons of the model's largest gradient is
*rounding*, and what n steps make of it.

From the second step on the two runs start from weights that differ by rounding, and no tolerance
of that size holds: a ReLU's input crosses zero in one run alone, and AdamW, which divides each
element's gradient by its own size, makes of noise a step of a whole learning rate. What such
accidents add up to is small beside the way that a parameter has gone; a fault in summing, clearing
or applying gradients is not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import distributed

from autopart.errors import RunError
from autopart.run_result import CheckResult
from autopart.runtime.execution.reference import Reference, Tensors

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
DRIFTS = {"float64": 1e-6, "float32": 1e-2, "float16": 0.3, "bfloat16": 0.3}

FLOOR_EPSILONS = 4.0
_ADAM = 4.0
_FAULT = 0.5
"""Two runs this far apart are not the same, however many steps they took."""
_NOISE = 100.0
"""AdamW takes a gradient below this many floors for more than it is."""
_MOMENTUM = {"sgd-momentum": 10.0}
"""What the steps of one gradient add up to, in learning rates; 1 where nothing is said."""

Holding = tuple[str, tuple[int, ...], torch.dtype]


class Found(NamedTuple):
    """One tensor of one rank, or one loss, beside the plain model's."""

    name: str
    rank: int
    difference: float
    allowed: float


@dataclass(slots=True)
class Check:
    """Rank 0's record of the comparison."""

    reference: Reference
    dtype: str
    steps: int
    optimizer: str
    lr: float
    is_delayed: bool = False
    """Whether both trained with older weights, in updates instead of steps."""
    gradients: list[Found] = field(default_factory=list)
    first_update: list[Found] = field(default_factory=list)
    parameters: list[Found] = field(default_factory=list)
    buffers: list[Found] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]

    @property
    def floor(self) -> float:
        return FLOOR_EPSILONS * torch.finfo(getattr(torch, self.dtype)).eps

    @property
    def rounding(self) -> float:
        """The largest absolute difference of a gradient that is rounding."""
        return self.floor * _largest(self.reference.gradients)

    @property
    def step(self) -> str:
        """What one step of the optimizer is called."""
        return "update" if self.is_delayed else "step"

    @property
    def is_linear(self) -> bool:
        """Whether a step is as exact as its gradient."""
        return self.optimizer != "adamw"

    def drift(self, steps: int) -> float:
        """How far two right runs may come apart in `steps` steps, relative to their way."""
        each = DRIFTS[self.dtype] * (1.0 if self.is_linear else _ADAM)
        return min(_FAULT, each * steps)

    def way(self, steps: int) -> float:
        """How far `steps` steps can take a parameter for each unit of gradient."""
        return self.lr * steps * _MOMENTUM.get(self.optimizer, 1.0)


def compare_gradients(check: Check | None, gradients: Tensors) -> None:
    """After the first step's backward; every rank gives the gradients that it holds."""
    for rank, name, mine in collect(gradients):
        assert check is not None
        plain = check.reference.gradients.get(name, torch.zeros_like(mine))
        difference = _difference(mine, plain, check.tolerance, check.rounding)
        check.gradients.append(Found(name, rank, difference, check.tolerance))
    if check is not None:
        seen = {found.name for found in check.gradients}
        for name in sorted(check.reference.gradients.keys() - seen):
            nothing = torch.zeros_like(plain := check.reference.gradients[name])
            difference = _difference(nothing, plain, check.tolerance, check.rounding)
            check.gradients.append(Found(name, 0, difference, check.tolerance))


def compare_first_update(check: Check | None, parameters: Tensors) -> None:
    """After the first step's update."""
    for rank, name, mine in collect(parameters):
        assert check is not None
        if check.is_linear:
            rounding = check.rounding * check.way(1)
            plain = check.reference.first[name]
            difference = _difference(mine, plain, check.tolerance, rounding)
            check.first_update.append(Found(name, rank, difference, check.tolerance))


def compare_parameters(check: Check | None, parameters: Tensors) -> None:
    """After the last step; every rank gives the parameters that it holds."""
    for rank, name, mine in collect(parameters):
        assert check is not None
        difference = _drift(check, name, mine)
        check.parameters.append(Found(name, rank, difference, check.drift(check.steps)))


def compare_buffers(check: Check | None, buffers: Tensors) -> None:
    """After the last step, without replicas only: each replica sees its own microbatches."""
    largest = _largest(check.reference.buffers) if check else 0.0
    for rank, name, mine in collect(buffers):
        assert check is not None
        plain = check.reference.buffers.get(name)
        if plain is not None:
            allowed = check.tolerance if check.steps == 1 else check.drift(check.steps)
            rounding = check.floor * largest if plain.is_floating_point() else 0.0
            difference = _difference(mine, plain, allowed, rounding)
            check.buffers.append(Found(name, rank, difference, allowed))


def outcome(
    check: Check,
    losses: Sequence[float],
    dropouts: int,
    random_operations: Sequence[str],
    notes: Sequence[str],
) -> CheckResult:
    """What was found; raises RunError naming what differs most where anything does."""
    of_losses = _compare_losses(check, losses)
    groups = {
        "": of_losses,
        "the gradient of ": check.gradients,
        f"after the first {check.step} parameter ": check.first_update,
        f"after the last {check.step} parameter ": check.parameters,
        "buffer ": check.buffers,
    }
    wrong = {what: bad for what, found in groups.items() if (bad := _beyond(found))}
    if wrong:
        raise RunError(_verdict(check, wrong, random_operations))
    gradient, parameter = _worst(check.gradients), _worst(check.parameters)
    return CheckResult(
        tolerance=check.tolerance,
        floor=check.floor,
        losses=_worst(of_losses).difference,
        gradients=gradient.difference,
        worst_gradient=gradient.name,
        first_update=_worst(check.first_update).difference if check.first_update else None,
        parameters=parameter.difference,
        worst_parameter=parameter.name,
        num_parameters=len({found.name for found in check.parameters}),
        num_buffers=len({found.name for found in check.buffers}),
        dropouts=dropouts,
        notes=tuple(notes),
    )


def collect(tensors: Tensors) -> Iterator[tuple[int, str, torch.Tensor]]:
    """On rank 0 every rank's tensors in turn, as (rank, name, tensor on the CPU), one in memory at
    a time; nothing on the other ranks, which send. Exhaust it on all ranks."""
    rank = distributed.get_rank()
    held: list[list[Holding]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(
        held, [(name, tuple(t.shape), t.dtype) for name, t in sorted(tensors.items())]
    )
    for holder, holdings in enumerate(held):
        for name, shape, dtype in holdings:
            if holder == rank:
                mine = tensors[name].detach().to("cpu").contiguous()
                if rank == 0:
                    yield 0, name, mine
                else:
                    distributed.send(mine, 0)
            elif rank == 0:
                theirs = torch.empty(shape, dtype=dtype)
                distributed.recv(theirs, holder)
                yield holder, name, theirs


def _compare_losses(check: Check, losses: Sequence[float]) -> list[Found]:
    plain, found = check.reference.losses, list[Found]()
    sharp = max(check.tolerance, FLOOR_EPSILONS * torch.finfo(check.reference.loss_dtype).eps)
    for step, (mine, theirs) in enumerate(zip(losses, plain, strict=True)):
        scale = abs(theirs) or 1.0
        moved = max(abs(loss - plain[0]) for loss in plain[: step + 1])
        allowed = sharp + check.drift(step + 1) * moved / scale
        apart = abs(mine - theirs) / scale
        difference = apart if math.isfinite(apart) else math.inf
        which = f"the loss of {check.step} {step + 1}"
        found.append(Found(which, 0, difference, allowed))
    return found


def _beyond(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if one.difference > one.allowed]


def _worst(found: Sequence[Found]) -> Found:
    return max(found, key=lambda one: one.difference)


def _verdict(
    check: Check, wrong: Mapping[str, Sequence[Found]], random_operations: Sequence[str]
) -> str:
    parts: list[str] = []
    for what, found in wrong.items():
        one = _worst(found)
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        where = f" on rank {one.rank}" if what else ""
        parts.append(
            f"{what}{one.name}{where} by {one.difference:.2g} ({one.allowed:.2g} allowed){more}"
        )
    same = " with the same older weights" if check.is_delayed else ""
    text = f"the pipeline differs from the plain model{same}: {'; '.join(parts)}"
    if random_operations:
        text += (
            "; the model draws random numbers besides dropout, which no two runs share: "
            f"{', '.join(random_operations)}"
        )
    return text


def _largest(tensors: Tensors) -> float:
    sizes = [float(t.abs().max()) for t in tensors.values() if t.is_floating_point() and t.numel()]
    return max(sizes, default=0.0)


def _difference(
    mine: torch.Tensor, plain: torch.Tensor, tolerance: float, rounding: float
) -> float:
    """0 where only rounding is beyond the tolerance, infinite where anything is no number."""
    if mine.shape != plain.shape or not mine.numel():
        return 0.0 if mine.shape == plain.shape else math.inf
    apart = float((mine.double() - plain.double()).abs().max())
    scale = float(plain.double().abs().max())
    if apart == 0.0 or tolerance * scale < apart <= rounding:
        return 0.0
    return apart / scale if math.isfinite(apart) and scale > 0.0 else math.inf


def _drift(check: Check, name: str, mine: torch.Tensor) -> float:
    """The root mean square of the difference over that of the parameter's way from the start."""
    plain, start = check.reference.last[name].double(), check.reference.start[name].double()
    apart, way = _rms(mine.double() - plain), _rms(plain - start)
    if not math.isfinite(apart):
        return math.inf
    is_rounding = apart <= _rounding_of_drift(check, name)
    if way > 0.0 and not (is_rounding and apart / way > check.drift(check.steps)):
        return apart / way
    return 0.0 if is_rounding else math.inf


def _rounding_of_drift(check: Check, name: str) -> float:
    way = check.way(check.steps)
    if check.is_linear:
        return check.rounding * way
    gradient = check.reference.gradients.get(name)
    is_noise = gradient is not None and _largest({name: gradient}) <= _NOISE * check.rounding
    return 2.0 * way if is_noise else 0.0


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
