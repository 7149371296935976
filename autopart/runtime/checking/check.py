"""The check: does the pipeline compute the same as the plain model, tensor by tensor?

    gradients of the first step    max |mine - plain| <= t max |plain|, or rounding; after clipping
    parameters after that step     the same (not with AdamW)
    parameters after n steps       rms(mine - plain) <= n d rms(plain - start)
    losses                         |mine - plain| <= t |plain| + n d |plain - first|
    buffers after the last step    as gradients (without replicas only)
    gradients of each step         both models have one, or both have none; under SGD zeros may stand for none

t is the tolerance and d the drift for the model's dtype; d is four times as large with AdamW.

Rounding. Some gradients are zero in exact arithmetic, such as a key's bias in attention or a bias
before BatchNorm. Both runs then have rounding noise and no digits to compare. Differences up to
`FLOOR_EPSILONS` machine epsilons, times the model's largest gradient, count as *rounding*. So do
the changes that n steps make from them.

Own rounding. Where a gradient in float32 is beyond t, the plain model runs once more in float64. Its
own distance from there, times a small number, is then allowed too (`own_rounding`).

Drift. From the second step on, both runs start from weights that differ by rounding, and no
tolerance like t holds. For example, a ReLU's input crosses zero in one run only. AdamW divides each
gradient by its own size, so it turns noise into a step with the full learning rate. Such
differences stay small beside the distance that a parameter moves from its start. Errors in summing,
clearing or applying gradients do not stay small.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import distributed

from autopart.runtime.checking.gradient_kinds import (
    KindsOfSteps,
    UnequalKind,
    gathered_kinds,
    unequal_kinds,
)
from autopart.runtime.checking.reference_run import ReferenceRun, Tensors
from autopart.runtime.models.precision import double

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
DRIFTS = {"float64": 1e-6, "float32": 1e-2, "float16": 0.3, "bfloat16": 0.3}

FLOOR_EPSILONS = 4.0
_ADAM = 4.0
_FAULT = 0.5
"""Largest drift that is ever allowed, after any number of steps."""
_NOISE = 100.0
"""Gradients up to this many times the rounding limit may be noise that AdamW amplifies."""
_MOMENTUM = {"sgd-momentum": 10.0}
"""Total movement that one gradient causes over all later steps, in learning rates. Default: 1."""

TensorInfo = tuple[str, tuple[int, ...], torch.dtype]
"""A tensor's name, shape and dtype."""


class Deviation(NamedTuple):
    """Difference between one rank's tensor, or one loss, and the plain model's."""

    name: str
    rank: int
    difference: float
    """Relative difference; see the module's table. Infinite for values that are not finite."""
    allowed: float


@dataclass(slots=True)
class CheckRecord:
    """The comparison so far; only rank 0 has one."""

    reference: ReferenceRun
    dtype: str
    steps: int
    optimizer: str
    lr: float
    weights: str = ""
    """How the weights of both models differ from the newest, older or predicted; steps are then
    updates. Empty where they are the newest."""
    in_float64: Callable[[], Tensors] | None = None
    """Makes the plain model's gradients of the first step in float64, for a model in float32."""
    gradients: list[Deviation] = field(default_factory=list)
    first_update: list[Deviation] = field(default_factory=list)
    parameters: list[Deviation] = field(default_factory=list)
    buffers: list[Deviation] = field(default_factory=list)
    draws: Counter[str] = field(default_factory=Counter[str])
    """Draws of random numbers on all ranks, by operation or generator."""
    unequal_kinds: list[UnequalKind] = field(default_factory=list)
    """Gradients that only one of both models has."""

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]

    @property
    def floor(self) -> float:
        return FLOOR_EPSILONS * torch.finfo(getattr(torch, self.dtype)).eps

    @property
    def rounding(self) -> float:
        """Largest absolute difference between gradients that counts as rounding."""
        return self.floor * _largest(self.reference.gradients)

    @property
    def step(self) -> str:
        """The word for one optimizer step in messages."""
        return "update" if self.weights else "step"

    @property
    def is_linear(self) -> bool:
        """Whether a step is as exact as its gradient. False for AdamW."""
        return self.optimizer != "adamw"

    def drift(self, steps: int) -> float:
        """Allowed difference after `steps` steps, relative to the distance from the start."""
        each = DRIFTS[self.dtype] * (1.0 if self.is_linear else _ADAM)
        return min(_FAULT, each * steps)

    def reach(self, steps: int) -> float:
        """Distance that `steps` steps can move a parameter, per unit of gradient."""
        return self.lr * steps * _MOMENTUM.get(self.optimizer, 1.0)


def compare_gradients(check: CheckRecord | None, gradients: Tensors) -> None:
    """Compare gradients after the first step's backward and after clipping. Collective: each rank gives its
    gradients."""
    # Step 1: compare each rank's gradients; a gradient that the plain model lacks counts as zero.
    for rank, name, mine in collect(gradients):
        assert check is not None
        plain = check.reference.gradients.get(name, torch.zeros_like(mine))
        difference = _difference(mine, plain, check.tolerance, check.rounding)
        check.gradients.append(Deviation(name, rank, difference, check.tolerance))
    # Step 2: a gradient that no rank has counts as zero, too.
    if check is not None:
        seen = {found.name for found in check.gradients}
        for name in sorted(check.reference.gradients.keys() - seen):
            nothing = torch.zeros_like(plain := check.reference.gradients[name])
            difference = _difference(nothing, plain, check.tolerance, check.rounding)
            check.gradients.append(Deviation(name, 0, difference, check.tolerance))


def compare_first_update(check: CheckRecord | None, parameters: Tensors) -> None:
    """Compare parameters after the first step's update. Collective over all ranks."""
    for rank, name, mine in collect(parameters):
        assert check is not None
        if check.is_linear:
            rounding = check.rounding * check.reach(1)
            plain = check.reference.first[name]
            difference = _difference(mine, plain, check.tolerance, rounding)
            check.first_update.append(Deviation(name, rank, difference, check.tolerance))


def compare_parameters(check: CheckRecord | None, parameters: Tensors) -> None:
    """Compare parameters after the last step. Collective: each rank gives its parameters."""
    for rank, name, mine in collect(parameters):
        assert check is not None
        difference = _drift(check, name, mine)
        check.parameters.append(Deviation(name, rank, difference, check.drift(check.steps)))


def compare_buffers(check: CheckRecord | None, buffers: Tensors) -> None:
    """Compare buffers after the last step. Collective over all ranks.

    Only without replicas, because each replica updates its buffers from its own microbatches.
    """
    largest = _largest(check.reference.buffers) if check else 0.0
    for rank, name, mine in collect(buffers):
        assert check is not None
        plain = check.reference.buffers.get(name)
        if plain is not None:
            allowed = check.tolerance if check.steps == 1 else check.drift(check.steps)
            rounding = check.floor * largest if plain.is_floating_point() else 0.0
            difference = _difference(mine, plain, allowed, rounding)
            check.buffers.append(Deviation(name, rank, difference, allowed))


def compare_draws(check: CheckRecord | None, draws: Mapping[str, int]) -> None:
    """Count the draws of random numbers on all ranks. Collective: each rank gives its own."""
    of_ranks: list[Mapping[str, int]] = [draws] * distributed.get_world_size()
    distributed.all_gather_object(of_ranks, draws)
    if check is not None:
        for of_rank in of_ranks:
            check.draws.update(of_rank)


def compare_kinds(check: CheckRecord | None, kinds: KindsOfSteps) -> None:
    """Compare which parameters have a gradient in each step. Collective: each rank gives its own."""
    of_all = gathered_kinds(kinds)
    if check is not None:
        check.unequal_kinds = unequal_kinds(of_all, check.reference.kinds)


def collect(tensors: Tensors) -> Iterator[tuple[int, str, torch.Tensor]]:
    """On rank 0, yields all ranks' tensors as (rank, name, tensor on the CPU), one at a time.

    Other ranks send their tensors and yield nothing. Collective: all ranks must exhaust the
    iterator.
    """
    # Step 1: all ranks learn the names, shapes and dtypes on each rank.
    rank = distributed.get_rank()
    infos: list[list[TensorInfo]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(
        infos, [(name, tuple(t.shape), t.dtype) for name, t in sorted(tensors.items())]
    )
    # Step 2: the tensors go to rank 0 in this common order, so rank 0 has one in memory at a time.
    for holder, of_rank in enumerate(infos):
        for name, shape, dtype in of_rank:
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


def _largest(tensors: Tensors) -> float:
    numbers = (t for t in tensors.values() if t.is_floating_point() or t.is_complex())
    sizes = [float(t.abs().max()) for t in numbers if t.numel()]
    return max(sizes, default=0.0)


def _difference(
    mine: torch.Tensor, plain: torch.Tensor, tolerance: float, rounding: float
) -> float:
    """Largest absolute difference over the largest absolute value of `plain`.

    0 if the difference exceeds the tolerance but counts as rounding. Infinite for unequal shapes
    and values that are not finite.
    """
    if mine.shape != plain.shape or not mine.numel():
        return 0.0 if mine.shape == plain.shape else math.inf
    apart = float((double(mine) - double(plain)).abs().max())
    scale = float(double(plain).abs().max())
    if apart == 0.0 or tolerance * scale < apart <= rounding:
        return 0.0
    return apart / scale if math.isfinite(apart) and scale > 0.0 else math.inf


def _drift(check: CheckRecord, name: str, mine: torch.Tensor) -> float:
    """Root mean square of the difference, over the root mean square distance from the start."""
    plain, start = double(check.reference.last[name]), double(check.reference.start[name])
    apart, moved = _rms(double(mine) - plain), _rms(plain - start)
    if not math.isfinite(apart):
        return math.inf
    is_rounding = apart <= _rounding_of_drift(check, name)
    if moved > 0.0 and not (is_rounding and apart / moved > check.drift(check.steps)):
        return apart / moved
    return 0.0 if is_rounding else math.inf


def _rounding_of_drift(check: CheckRecord, name: str) -> float:
    """Largest difference after the last step that rounding in gradients can cause."""
    reach = check.reach(check.steps)
    if check.is_linear:
        return check.rounding * reach
    gradient = check.reference.gradients.get(name)
    is_noise = gradient is not None and _largest({name: gradient}) <= _NOISE * check.rounding
    # AdamW steps by up to the learning rate even for noise, and both runs may go opposite ways.
    return 2.0 * reach if is_noise else 0.0


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
