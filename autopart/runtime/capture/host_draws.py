"""Draws from Python's and numpy's generators, which a graph would hold as constants.

A trace runs the user's code once, so that each number it draws stays the same for ever: a layer that
is skipped in the trace is skipped in each step.
"""

import pickle
import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from autopart.runtime.capture.torch_export import UncapturableError

_GENERATORS = (random.Random, np.random.RandomState)


@contextmanager
def draws_noted(model: nn.Module) -> Generator[list[bool]]:
    """Yield a list that has one entry after the block if a generator has drawn inside it.

    The global generators count, and generators in the attributes of modules. All are restored.
    """
    own = [
        v for m in model.modules() for v in vars(m).values() if isinstance(v, np.random.Generator)
    ]
    states = _states(own)
    drawn: list[bool] = []
    try:
        yield drawn
    finally:
        if pickle.dumps(states) != pickle.dumps(_states(own)):
            drawn.append(True)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for generator, state in zip(own, states[2], strict=True):
            generator.bit_generator.state = state


def _states(own: Iterable[np.random.Generator]) -> tuple[Any, Any, list[Any]]:
    return random.getstate(), np.random.get_state(), [g.bit_generator.state for g in own]


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
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, np.random.Generator):
                kept.append((module.__dict__, name, value))
                module.__dict__[name] = _Refusing()
    try:
        yield
    finally:
        for names, name, value in kept:
            names[name] = value
    _refuse()


class _Refusing:
    """Stands for a module's own generator."""

    def __getattr__(self, name: str) -> None:
        _refuse()


def _refuse(*_: Any, **__: Any) -> None:
    raise UncapturableError("it draws numbers from a generator of Python or numpy")
