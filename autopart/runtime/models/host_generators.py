"""Random generators outside torch: Python's and numpy's global ones, and a model's own."""

# pyright: reportPrivateUsage=false

import pickle
import random
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import nn

GLOBALS = ("random", "numpy.random")
"""The modules whose functions draw from a hidden global generator."""
OWN = "generators of the model's own"
"""The word for all other generators that are found."""

States = tuple[Any, Any, tuple[bytes, ...]]
"""States of Python's global generator, of numpy's, and of a model's own ones."""

_KINDS = (random.Random, np.random.RandomState, np.random.Generator)


def own_generators(modules: Iterable[nn.Module]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return each generator with the dictionary and the name that hold it.

    The generators are attributes of the modules, or globals that the modules' functions read.
    """
    hidden = (getattr(random, "_inst"), getattr(np.random.mtrand, "_rand"))  # noqa: B009
    found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
    for module in modules:
        holders = [(vars(module), name) for name in vars(module)]
        for function in _functions(module):
            holders += [(function.__globals__, name) for name in function.__code__.co_names]
        for names, name in holders:
            value = names.get(name)
            if isinstance(value, _KINDS) and all(value is not one for one in hidden):
                found[id(names), name] = (names, name, value)
    return list(found.values())


def _functions(module: nn.Module) -> list[FunctionType]:
    classes = type(module).__mro__
    above = classes[: classes.index(nn.Module)]
    inside = [*vars(module).values(), *(v for one in above for v in vars(one).values())]
    plain = [v.__func__ if isinstance(v, MethodType) else v for v in inside]
    return [v for v in plain if isinstance(v, FunctionType)]


class HostGenerators:
    """Python's and numpy's global generators, and those that some modules hold."""

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        found = own_generators(modules)
        names = {id(g): min(name for _, name, other in found if other is g) for _, _, g in found}
        self._own = {names[id(g)]: g for _, _, g in found}
        """The model's own generators by their names there, on which their seeds depend."""

    def states(self) -> States:
        """Return the states. Equal states compare equal."""
        name, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
        numpys = (name, np.asarray(keys).tobytes(), place, has_gauss, gauss)
        return random.getstate(), numpys, tuple(pickle.dumps(_state(g)) for g in self._own.values())

    def restore(self, states: States) -> None:
        """Put the generators into the states that `states` returned."""
        random.setstate(states[0])
        name, keys, *rest = states[1]
        np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
        for generator, state in zip(self._own.values(), states[2], strict=True):
            _put(generator, pickle.loads(state))

    def seed(self, seed: int) -> None:
        """Seed all of them; `seed` has 32 bits."""
        random.seed(seed)
        np.random.seed(seed)
        for name, generator in self._own.items():
            _seed(generator, zlib.crc32(f"{seed} {name}".encode()))

    @contextmanager
    def restored(self) -> Generator[None]:
        """Restore the states after the block."""
        before = self.states()
        try:
            yield
        finally:
            self.restore(before)


def moved(before: States, after: States) -> list[str]:
    """Return the names of the generators that have drawn: `GLOBALS` and `OWN`."""
    apart = [old != new for old, new in zip(before, after, strict=True)]
    return [name for name, is_apart in zip((*GLOBALS, OWN), apart, strict=True) if is_apart]


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _put(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, random.Random | np.random.RandomState):
        generator.seed(seed)
    else:
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
