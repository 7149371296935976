"""Which parameters have a gradient, step by step, in the pipeline and in the plain model.

A gradient of zeros and no gradient are equal under SGD. Momentum and weight decay move a parameter with zeros, and leave
one without a gradient alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import distributed

NONE, ZEROS, NUMBERS = 0, 1, 2
"""The kinds of a parameter's gradient in one step: none, all zeros, and other numbers."""

KindsOfSteps = Mapping[str, bytes]
"""One kind per step for each parameter, by the user's names."""

_WORDS = {NONE: "no gradient", ZEROS: "a gradient of zeros", NUMBERS: "a gradient"}


class GradientKinds:
    """Collects the kinds of all gradients, one step after the other."""

    def __init__(self) -> None:
        self._of: dict[str, bytearray] = {}

    def add(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Note a step's gradients, before the optimizer clears them. All steps have the same parameters."""
        for name, parameter in parameters.items():
            self._of.setdefault(name, bytearray()).append(_kind(parameter.grad))

    def of_steps(self) -> dict[str, bytes]:
        """Return the kinds of all steps."""
        return {name: bytes(kinds) for name, kinds in self._of.items()}


class UnequalKind(NamedTuple):
    """A gradient that only one of both models has."""

    name: str
    step: int
    """Counted from 0."""
    mine: int
    plain: int

    def __str__(self) -> str:
        return (
            f"'{self.name}' has {_WORDS[self.mine]} in step {self.step + 1}, in the plain model "
            f"{_WORDS[self.plain]}"
        )

    @property
    def counts(self) -> bool:
        """Whether numbers are missing or too many, so that even SGD differs."""
        return NUMBERS in (self.mine, self.plain)


def gathered_kinds(mine: KindsOfSteps) -> dict[str, bytes]:
    """The kinds over all ranks. Collective. A parameter has the gradient that any of its ranks has."""
    of_ranks: list[KindsOfSteps] = [mine] * distributed.get_world_size()
    distributed.all_gather_object(of_ranks, mine)
    found: dict[str, bytes] = {}
    for of_rank in of_ranks:
        for name, kinds in of_rank.items():
            found[name] = bytes(map(max, kinds, found.get(name, kinds)))
    return found


def unequal_kinds(mine: KindsOfSteps, plain: KindsOfSteps) -> list[UnequalKind]:
    """The first step of each parameter in which only one of both models has a gradient."""
    found: list[UnequalKind] = []
    for name in sorted(mine.keys() & plain.keys()):
        steps = enumerate(zip(mine[name], plain[name], strict=True))
        apart = (UnequalKind(name, s, a, b) for s, (a, b) in steps if (a == NONE) != (b == NONE))
        found.extend(sorted(apart, key=lambda one: not one.counts)[:1])
    return found


def told(found: Sequence[UnequalKind]) -> str:
    """The worst of several for a message."""
    worst = max(found, key=lambda one: one.counts)
    return f"{worst}{f', and {len(found) - 1} more' if len(found) > 1 else ''}"


def _kind(gradient: torch.Tensor | None) -> int:
    if gradient is None:
        return NONE
    return NUMBERS if bool(gradient.any()) else ZEROS
