"""A tensor that says that there is no gradient: a stage sends it back for a value that it did not use.

Zeros would say something else. AdamW moves a weight with a zero gradient, and leaves one without a gradient alone.
All numbers of the tensor are one NaN with a mark, which no computation makes.
"""

import torch

_MARKS = {
    torch.float16: (torch.int16, 0x7EA5),
    torch.bfloat16: (torch.int16, 0x7FE5),
    torch.float32: (torch.int32, 0x7FC0A5A5),
    torch.float64: (torch.int64, 0x7FF8A5A5A5A5A5A5),
}
"""For each dtype the integers of its size, and the bits of the marked NaN."""


def no_gradient(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The tensor for a value of this shape and dtype; zeros for a dtype without a mark."""
    if dtype.is_complex:
        return torch.view_as_complex(no_gradient((*shape, 2), dtype.to_real(), device))
    if dtype not in _MARKS:
        return torch.zeros(shape, dtype=dtype, device=device)
    integers, mark = _MARKS[dtype]
    return torch.full(shape, mark, dtype=integers, device=device).view(dtype)


def is_no_gradient(gradient: torch.Tensor) -> bool:
    """Whether the tensor says that there is no gradient. On a GPU it waits for the tensor."""
    real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    if real.dtype not in _MARKS:
        return False
    integers, mark = _MARKS[real.dtype]
    return bool((real.view(integers) == mark).all())
