"""Random numbers for a check: equal in the plain model and in the pipeline.

A microbatch's forward starts with its own seed in torch's generator. The seed stays in the generator
while operations draw. Each draw has its own seed. It is made from the microbatch's seed, the operation,
its tensors' shapes, and its plain arguments such as a probability.

So numbers depend neither on the rank nor on the order of draws. A layer that runs again in backward
restores the generator, and with it the microbatch's seed. A backward starts with another seed, so
that a layer without that restoration draws other numbers and fails the check.

Numbers fill a tensor in the order of its elements, also where its strides differ. A received tensor
is contiguous, and the plain model's may be transposed.
"""

import random
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_OTHERS = ("random", "numpy.random")


def starts(microbatch: int, *, is_backward: bool = False) -> None:
    """Seed all generators for one microbatch, if a check draws seeded numbers; else do nothing."""
    if SeededDraws.running is not None:
        SeededDraws.running.start(microbatch, is_backward=is_backward)


class SeededDraws(TorchDispatchMode):
    """A context in which each draw has its own seed. Forwards and backwards call `starts`."""

    running: "SeededDraws | None" = None
    """The context that has been entered last and not left."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        """Draws in all forwards, by operation."""
        self.other_generators: set[str] = set()
        """Generators other than torch's from which forwards have drawn."""
        self._is_forward = False
        self._others: tuple[Any, Any] = (None, None)

    def __enter__(self) -> "SeededDraws":
        SeededDraws.running = self
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        SeededDraws.running = None

    def start(self, microbatch: int, *, is_backward: bool) -> None:
        """Seed the generators of torch, numpy and Python for a forward or a backward."""
        if self._is_forward:
            self._note_other_generators()
        seed = 2 * microbatch + is_backward
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        self._is_forward = not is_backward
        self._others = _other_states()

    def _note_other_generators(self) -> None:
        """Compare the generators with their states at the start of the last forward."""
        for name, before, now in zip(_OTHERS, self._others, _other_states(), strict=True):
            if before != now:
                self.other_generators.add(name)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not draws(func, args, given):
            return func(*args, **given)
        if self._is_forward:
            self.counts[name_of(func)] += 1
        if given.get("generator") is not None:
            given["generator"] = None
        of_microbatch = torch.initial_seed()
        torch.manual_seed(_seed(of_microbatch, func, args))
        try:
            return _in_element_order(func, args, given)
        finally:
            torch.manual_seed(of_microbatch)


def name_of(operation: Any) -> str:
    """An operation's name without namespace and overload, such as `rand_like`."""
    return operation._schema.name.rpartition("::")[2]


def draws(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers.

    Torch marks such operations. Marked dropout and attention draw nothing with a probability of 0.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(operation, "tags", ()):
        return False
    # Bernoulli's p is the probability of a one, and it draws for every p.
    if "bernoulli" in operation._schema.name:
        return True
    for place, argument in enumerate(operation._schema.arguments):
        if argument.name in ("p", "dropout_p", "dropout"):
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            probability = argument.default_value if given is None else given
            return not isinstance(probability, float | int) or probability > 0.0
    return True


def _seed(of_microbatch: int, operation: Any, args: tuple[Any, ...]) -> int:
    told = [
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in pytree.tree_leaves(args)
    ]
    return zlib.crc32(repr((of_microbatch, str(operation), told)).encode())


def _in_element_order(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first = args[0] if args else None
    if not isinstance(first, torch.Tensor) or first.is_contiguous():
        return operation(*args, **kwargs)
    made = operation(first.contiguous(), *args[1:], **kwargs)
    if operation._schema.is_mutable and isinstance(made, torch.Tensor):
        return first.copy_(made)

    def as_the_first(leaf: Any) -> Any:
        same = isinstance(leaf, torch.Tensor) and leaf.shape == first.shape
        return torch.empty_like(first, dtype=leaf.dtype).copy_(leaf) if same else leaf

    return pytree.tree_map(as_the_first, made)


def _other_states() -> tuple[Any, Any]:
    name, keys, place, *_ = np.random.get_state()
    return random.getstate(), (name, bytes(np.asarray(keys)), place)
