"""Random numbers for a check: equal in the plain model and in the pipeline.

A microbatch's forward starts with its own seed in torch's generator. The seed stays in the generator
while operations draw. Each draw has its own seed. It is made from the microbatch's seed, the operation,
its tensors' shapes, and its plain arguments such as a probability.

So numbers depend neither on the rank nor on the order of draws. A layer that runs again in backward
restores the generator, and with it the microbatch's seed. A backward starts with another seed, so
that a layer without that restoration draws other numbers and fails the check.

Parts that run as they are may draw from other generators (`seeded_parts`). Python's and numpy's start
each microbatch with its seed. A part seeds them anew, from their states and its own name, and puts
them back afterwards.

Where d processes share a microbatch's samples, each draws for all samples and takes its own part along the
first dimension. So the numbers of a sample do not depend on the process that has it.

Numbers fill a tensor in the order of its elements, also where its strides differ. A received tensor
is contiguous, and the plain model's may be transposed.
"""

import zlib
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.runtime.models.host_generators import HostGenerators, moved


def starts(microbatch: int, *, is_backward: bool = False) -> None:
    """Seed all generators for one microbatch, if a check draws seeded numbers; else do nothing."""
    if SeededDraws.running is not None:
        SeededDraws.running.start(microbatch, is_backward=is_backward)


class SamplePart(NamedTuple):
    """One of `among` equal parts of a microbatch's samples: tensors have them along their first dimension."""

    place: int
    among: int

    def whole_arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of an operation for all samples."""
        if args and isinstance(args[0], list | tuple) and args[0]:
            first, *rest = args[0]
            return ([first * self.among, *rest], *args[1:])
        return pytree.tree_map(self.in_whole, args)

    def in_whole(self, value: Any) -> Any:
        """A tensor for all samples, in which the own ones stand for those of other parts; other values are as they are.

        Zeros would not do: an operation may refuse them, as torch's multinomial does.
        """
        if not isinstance(value, torch.Tensor) or not value.ndim:
            return value
        return torch.cat([value] * self.among)

    def own(self, value: Any) -> Any:
        """The own part of a tensor for all samples."""
        is_whole = isinstance(value, torch.Tensor) and value.ndim
        return value.chunk(self.among)[self.place] if is_whole else value


class SeededDraws(TorchDispatchMode):
    """A context in which each draw has its own seed. Forwards and backwards call `starts`."""

    running: "SeededDraws | None" = None
    """The context that has been entered last and not left."""

    def __init__(self, samples: "SamplePart | None" = None) -> None:
        """`samples` is the part of each microbatch's samples that is drawn for; None for all."""
        super().__init__()
        self._samples = samples
        self.counts: Counter[str] = Counter()
        """Draws in all forwards by operation, and parts that drew by other generators."""
        self.num_forwards = 0
        """Forwards that have started."""
        self.is_in_part = False
        """Whether a part now draws its own numbers from generators outside torch."""
        self._is_forward = False
        self._generators = HostGenerators()
        self._begin = self._generators.states()
        self._callers = ExitStack()
        """The caller's random states, while the context is entered."""

    def __enter__(self) -> "SeededDraws":
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        self._callers.enter_context(torch.random.fork_rng(devices=devices))
        self._callers.enter_context(self._generators.restored())
        SeededDraws.running = self
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        SeededDraws.running = None
        self._end_forward()
        self._callers.close()

    def start(self, microbatch: int, *, is_backward: bool) -> None:
        """Seed the generators of torch, numpy and Python for a forward or a backward."""
        self._end_forward()
        seed = 2 * microbatch + is_backward
        torch.manual_seed(seed)
        self._generators.seed(seed)
        self._is_forward = not is_backward
        self.num_forwards += self._is_forward
        self._begin = self._generators.states()

    @contextmanager
    def part(self, name: str, generators: HostGenerators) -> Generator[None]:
        """In this block the generators draw the numbers of one part. Parts inside it are its own."""
        if self.is_in_part:
            yield
            return
        # The states before are the microbatch's, unless a second run of a layer lacks them.
        before = generators.states()
        generators.seed(zlib.crc32(repr((before[:2], name)).encode()))
        begin, self.is_in_part = generators.states(), True
        try:
            yield
        finally:
            self.is_in_part = False
            if self._is_forward:
                self.counts.update(moved(begin, generators.states()))
            generators.restore(before)

    def _end_forward(self) -> None:
        """Count draws from generators outside torch, and outside all parts."""
        if self._is_forward:
            self.counts.update(moved(self._begin, self._generators.states()))
        self._is_forward = False

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
        part = self._samples
        whole = args if part is None else part.whole_arguments(args)
        torch.manual_seed(_seed(of_microbatch, func, whole))
        try:
            if part is None:
                return _in_element_order(func, args, given)
            return _of_part(part, func, args, _in_element_order(func, whole, given))
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


def _of_part(part: SamplePart, operation: Any, args: tuple[Any, ...], made: Any) -> Any:
    """The own part of a draw for all samples; operations that write do so into their first argument."""
    own = pytree.tree_map(part.own, made)
    return args[0].copy_(own) if operation._schema.is_mutable else own


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
