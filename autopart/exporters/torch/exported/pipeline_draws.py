"""Equal random numbers in the plain model and in the pipeline, for `pipeline_check.py`.

Written by autopart. A microbatch's seed stays in torch's generator while operations draw. Each draw
has its own seed, made from that seed, the operation and the shapes that it takes.
"""

import zlib
from collections import Counter
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def seed_by_microbatch(stage: Any, replica: int, num_replicas: int) -> None:
    """Start each forward with its microbatch's seed, and each backward with another seed.

    A layer that runs again in backward must restore the forward's seed, as in training.
    """
    forward, backward = stage.forward_one_chunk, stage.backward_one_chunk

    def seeded_forward(chunk: int, *args: Any, **options: Any) -> Any:
        torch.manual_seed(2 * (chunk * num_replicas + replica))
        return forward(chunk, *args, **options)

    def seeded_backward(chunk: int, *args: Any, **options: Any) -> Any:
        torch.manual_seed(2 * (chunk * num_replicas + replica) + 1)
        return backward(chunk, *args, **options)

    stage.forward_one_chunk, stage.backward_one_chunk = seeded_forward, seeded_backward


class SameDraws(TorchDispatchMode):
    """A context in which draws depend on the microbatch's seed, the operation and the shapes only.

    So both models draw alike, whatever the order of stages and microbatches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        name = func._schema.name.rpartition("::")[2]
        if "attention" not in name:  # fused attention is marked, though it rarely draws
            self.counts[name] += 1
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None
        told = [
            tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in pytree.tree_leaves(args)
        ]
        kept = torch.initial_seed()
        torch.manual_seed(zlib.crc32(repr((kept, name, told)).encode()))
        try:
            return _in_element_order(func, args, kwargs)
        finally:
            torch.manual_seed(kept)


def _in_element_order(operation: Any, args: Any, kwargs: Any) -> Any:
    """The operation's result, with numbers that do not depend on the first argument's strides."""
    first = args[0] if args else None
    if not isinstance(first, torch.Tensor) or first.is_contiguous():
        return operation(*args, **kwargs)
    made = operation(first.contiguous(), *args[1:], **kwargs)
    if operation._schema.is_mutable and isinstance(made, torch.Tensor):
        return first.copy_(made)

    def as_the_first(leaf: torch.Tensor) -> torch.Tensor:
        same = leaf.shape == first.shape
        return torch.empty_like(first, dtype=leaf.dtype).copy_(leaf) if same else leaf

    return pytree.tree_map_only(torch.Tensor, as_the_first, made)
