"""Is the pipeline the plain model? Losses, gradients, parameters and buffers, tensor by tensor.

The difference of a tensor is max |mine - plain| / max |plain|. Where the true gradient is zero (a
key's bias in attention, a bias before BatchNorm) both runs hold rounding noise, which has no digits
to compare: a difference of up to `FLOOR_EPSILONS` machine epsilons of the model's largest gradient
counts as rounding.

A parameter after n steps of SGD may differ by n learning rates times that much more. AdamW divides
each element by its own size, which turns noise into steps of up to one learning rate; there the
root mean square of the difference may be `ADAM_SHARE` of n learning rates, and where the gradient
itself is noise any difference counts as rounding.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import distributed

from autopart.errors import RunError
from autopart.run_result import CheckResult
from autopart.runtime.reference import Reference, Tensors

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""The largest difference that passes, by the model's dtype."""

FLOOR_EPSILONS = 4.0
ADAM_SHARE = 0.05
_NOISE = 100.0
"""A gradient below this many floors is noise to AdamW."""


class Found(NamedTuple):
    """One tensor of one rank beside the plain model's."""

    difference: float
    name: str
    rank: int


@dataclass(slots=True)
class Check:
    """Rank 0's record of the comparison."""

    reference: Reference
    dtype: torch.dtype
    tolerance: float
    steps: int
    optimizer: str
    lr: float
    gradients: list[Found] = field(default_factory=list)
    parameters: list[Found] = field(default_factory=list)
    buffers: list[Found] = field(default_factory=list)

    @property
    def floor(self) -> float:
        return FLOOR_EPSILONS * torch.finfo(self.dtype).eps

    @property
    def rounding(self) -> float:
        """The largest difference of a gradient that is rounding."""
        return self.floor * _largest(self.reference.gradients)


def holdings(tensors: Tensors) -> list[tuple[tuple[str, tuple[int, ...], torch.dtype], ...]]:
    """What every rank holds; a collective, as is `collect` after it."""
    mine = tuple((name, tuple(t.shape), t.dtype) for name, t in sorted(tensors.items()))
    held: list[tuple[tuple[str, tuple[int, ...], torch.dtype], ...]] = [()] * (
        distributed.get_world_size()
    )
    distributed.all_gather_object(held, mine)
    return held


def collect(tensors: Tensors) -> Iterator[tuple[int, str, torch.Tensor]]:
    """On rank 0 every rank's tensors in turn, as (rank, name, tensor on the CPU), one in memory at
    a time; nothing on the other ranks, which send. Exhaust it on all ranks."""
    held, rank = holdings(tensors), distributed.get_rank()
    for holder, names in enumerate(held):
        for name, shape, dtype in names:
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


def compare_gradients(check: Check | None, gradients: Tensors) -> None:
    """After the first step's backward; every rank gives the gradients that it holds."""
    for rank, name, mine in collect(gradients):
        assert check is not None
        plain = check.reference.gradients.get(name, torch.zeros_like(mine))
        check.gradients.append(
            Found(_difference(mine, plain, check.tolerance, check.rounding), name, rank)
        )
    if check is not None:
        seen = {found.name for found in check.gradients}
        for name in sorted(check.reference.gradients.keys() - seen):
            plain = check.reference.gradients[name]
            if float(plain.abs().max()) > check.rounding:
                check.gradients.append(Found(math.inf, name, 0))


def compare_parameters(check: Check | None, parameters: Tensors) -> None:
    """After the last step; every rank gives the parameters that it holds."""
    for rank, name, mine in collect(parameters):
        assert check is not None
        plain = check.reference.parameters[name]
        check.parameters.append(Found(_parameter_difference(check, name, mine, plain), name, rank))


def compare_buffers(check: Check | None, buffers: Tensors) -> None:
    """After the last step, without replicas only: each replica sees its own microbatches."""
    largest = _largest(check.reference.buffers) if check else 0.0
    for rank, name, mine in collect(buffers):
        assert check is not None
        plain = check.reference.buffers.get(name)
        if plain is not None:
            floor = check.floor * largest if plain.is_floating_point() else 0.0
            check.buffers.append(
                Found(_difference(mine, plain, check.tolerance, floor), name, rank)
            )


def finish(
    check: Check,
    losses: Sequence[float],
    dropouts: int,
    random_ops: Sequence[str],
    notes: Sequence[str],
) -> CheckResult:
    """The outcome; raises RunError naming what differs most where anything does."""
    of_losses = [
        Found(
            abs(mine - plain) / abs(plain) if plain else abs(mine),
            f"the loss of step {step + 1}",
            0,
        )
        for step, (mine, plain) in enumerate(zip(losses, check.reference.losses, strict=True))
    ]
    groups = {
        "": of_losses,
        "gradient of ": check.gradients,
        "parameter ": check.parameters,
        "buffer ": check.buffers,
    }
    wrong = [
        (w, what)
        for what, all_of in groups.items()
        if (w := _worst(all_of)) and not w.difference <= check.tolerance
    ]
    if wrong:
        raise RunError(_verdict(check, wrong, random_ops))
    gradient, parameter = _worst(check.gradients), _worst(check.parameters)
    assert gradient is not None and parameter is not None
    return CheckResult(
        tolerance=check.tolerance,
        floor=check.floor,
        losses=max(found.difference for found in of_losses),
        gradients=gradient.difference,
        worst_gradient=gradient.name,
        parameters=parameter.difference,
        worst_parameter=parameter.name,
        num_parameters=len({found.name for found in check.parameters}),
        num_buffers=len({found.name for found in check.buffers}),
        dropouts=dropouts,
        notes=tuple(notes),
    )


def _verdict(check: Check, wrong: list[tuple[Found, str]], random_ops: Sequence[str]) -> str:
    told = "; ".join(
        f"{what}{found.name} by {found.difference:.2g}" + (f" (rank {found.rank})" if what else "")
        for found, what in wrong
    )
    bad = sum(not f.difference <= check.tolerance for f in check.gradients)
    text = (
        f"the pipeline differs from the plain model: {told} of its largest element, at most "
        f"{check.tolerance:.0e} is rounding"
    )
    if bad:
        text += f"; {bad} of {len(check.gradients)} gradients differ"
    if random_ops:
        text += (
            f"; the model draws random numbers besides dropout ({', '.join(random_ops)}), "
            "which no two runs share: check it without them"
        )
    return text


def _worst(found: Sequence[Found]) -> Found | None:
    return max(found, key=lambda f: f.difference, default=None)


def _largest(tensors: Mapping[str, torch.Tensor]) -> float:
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


def _parameter_difference(
    check: Check, name: str, mine: torch.Tensor, plain: torch.Tensor
) -> float:
    reach = check.lr * check.steps
    if check.optimizer != "adamw":
        momentum = 10.0 if check.optimizer == "sgd-momentum" else 1.0
        return _difference(mine, plain, check.tolerance, check.rounding * reach * momentum)
    difference = _difference(mine, plain, check.tolerance, 0.0)
    if difference <= check.tolerance:
        return difference
    gradient = check.reference.gradients.get(name)
    if gradient is not None and math.isfinite(difference):
        rms = float((mine.double() - plain.double()).square().mean().sqrt())
        is_noise = float(gradient.abs().max()) <= _NOISE * check.rounding
        if rms <= ADAM_SHARE * reach or (is_noise and rms <= 2.0 * reach):
            return 0.0
    return difference
