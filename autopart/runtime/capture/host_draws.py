"""Draws from Python's and numpy's generators, which a graph would hold as constants.

A trace runs the user's code once, so that each number it draws stays the same for ever: a layer that
is skipped in the trace is skipped in each step.
"""

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from autopart.runtime.capture.torch_export import UncapturableError
from autopart.runtime.models.host_generators import HostGenerators, own_generators

_GENERATORS = (random.Random, np.random.RandomState)


@contextmanager
def draws_noted(model: nn.Module) -> Generator[list[bool]]:
    """Yield a list that has one entry after the block if a generator has drawn inside it.

    The global generators count, and the model's own ones. All are restored.
    """
    generators = HostGenerators(model.modules())
    before = generators.states()
    drawn: list[bool] = []
    try:
        yield drawn
    finally:
        if generators.states() != before:
            drawn.append(True)
        generators.restore(before)


@contextmanager
def draws_refused(model: nn.Module) -> Generator[None]:
    """Raise UncapturableError at the user's line that draws from such a generator.

    If the line cannot be found, it is raised at the end of the block.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for names in (random.__dict__, np.random.__dict__):
        for name, value in list(names.items()):
            if isinstance(getattr(value, "__self__", None), _GENERATORS):
                kept.append((names, name, value))
                names[name] = _refuse
    for names, name, value in own_generators(model.modules()):
        kept.append((names, name, value))
        names[name] = _Refusing()
    try:
        yield
    finally:
        for names, name, value in kept:
            names[name] = value
    _refuse()


class _Refusing:
    """Stands for a generator of the model's own."""

    def __getattr__(self, name: str) -> None:
        _refuse()


def _refuse(*_: Any, **__: Any) -> None:
    raise UncapturableError("it draws numbers from a generator of Python or numpy")
