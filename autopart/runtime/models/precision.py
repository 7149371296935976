"""Dtypes of a model and its batch: the user's own, or one dtype where ``--dtype`` asks for it."""

from collections import Counter
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import ModelError

DTYPES = ("float32", "bfloat16", "float16", "float64")

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
"""Complex dtypes for a dtype that is asked for. Under 16 bits complex tensors stay as they are."""


def dtype_of(name: str) -> torch.dtype:
    """Return the floating dtype called `name`. Raises ModelError unless `DTYPES` lists it."""
    if name not in DTYPES:
        raise ModelError(f"unknown dtype '{name}'; known: {', '.join(DTYPES)}")
    return cast(torch.dtype, getattr(torch, name))


def cast_to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in `dtype`, a complex one in the complex dtype with the same width.

    Whole numbers and booleans stay as they are.
    """
    if tensor.is_complex():
        return tensor.to(_COMPLEX.get(dtype, tensor.dtype))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def cast_model(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast all parameters and buffers in place. Parameters stay the same objects, so ties stay."""

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        return cast_to(tensor, dtype)

    # Module.to would make complex tensors real.
    model._apply(changed)  # pyright: ignore[reportPrivateUsage]


def double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's numbers in float64; a complex tensor's parts stand in one more dimension."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def main_dtype(model: nn.Module, batch: object) -> tuple[str, bool]:
    """Return the dtype that most parameter elements have, and whether all other tensors have it.

    Parameters, buffers and batch tensors count as others. Complex numbers count as their parts.
    """
    elements: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        real = parameter.dtype.to_real() if parameter.is_complex() else parameter.dtype
        if _name(real) in DTYPES:
            elements[real] += parameter.numel()
    main = max(elements, key=lambda dtype: (elements[dtype], dtype.itemsize), default=torch.float32)
    tensors = [*model.parameters(), *model.buffers(), *_tensors(batch)]
    numbers = [t.dtype for t in tensors if t.is_floating_point() or t.is_complex()]
    return _name(main), all(dtype in (main, _COMPLEX.get(main)) for dtype in numbers)


def coarsest_dtype(model: nn.Module, name: str) -> str:
    """Return the dtype with the largest rounding error: a parameter's, or the dtype `name`."""
    real = (p.dtype.to_real() if p.is_complex() else p.dtype for p in model.parameters())
    known = {name, *(_name(dtype) for dtype in real if _name(dtype) in DTYPES)}
    return max(known, key=lambda one: torch.finfo(dtype_of(one)).eps)


def notes_on_cast(model: nn.Module, batch: object, name: str) -> tuple[str, ...]:
    """Say how many tensors, in which dtypes, a cast of the model and its batch to `name` changes.

    Empty where all have the dtype already.
    """
    dtype = dtype_of(name)
    kinds = {
        "parameter": model.parameters(),
        "buffer": model.buffers(),
        "batch tensor": _tensors(batch),
    }
    parts = [
        f"{count} {former} {kind}{'s' if count > 1 else ''}"
        for kind, tensors in kinds.items()
        for former, count in _changed(tensors, dtype).items()
    ]
    return (f"--dtype {name} casts {', '.join(parts)}",) if parts else ()


def _changed(tensors: Iterable[torch.Tensor], dtype: torch.dtype) -> Counter[str]:
    return Counter(
        _name(t.dtype) for t in tensors if cast_to(t.detach().to("meta"), dtype).dtype != t.dtype
    )


def _tensors(batch: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
