"""A GPU's fused kernels on meta tensors: the bytes that they keep and need.

The device decides which kernel runs, and so which tensors autograd saves. On meta, attention is
decomposed and keeps its whole score matrix, and dropout keeps noise in the input's precision. A GPU
runs fused kernels that keep neither. This context replaces both operations, for meta tensors only.
It also adds the squares in a mean of squares: every real device makes all squares first, but meta
makes only the result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

_ATTENTION = frozenset({F.scaled_dot_product_attention, aten.scaled_dot_product_attention.default})
_DROPOUT = frozenset({F.dropout, torch.dropout, aten.dropout.default})
_SQUARES = frozenset({F.mse_loss, aten.mse_loss.default})


class FusedOps(TorchFunctionMode):
    """A context in which meta tensors use fused attention, fused dropout and real mean squares."""

    def __init__(self, *, dropout: bool = True) -> None:
        """Leave dropout as it is with `dropout` False, as on a CPU, where it is not fused."""
        super().__init__()
        self._dropout = dropout

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ATTENTION and _has_fused_attention(*args, **kwargs):
            return _attention(*args, **kwargs)
        if self._dropout and func in _ATTENTION and _has_efficient_attention(*args, **kwargs):
            return _efficient_attention(*args, **kwargs)
        if self._dropout and func in _DROPOUT and _is_meta(args):
            return _dropout(func, *args, **kwargs)
        if func in _SQUARES and _is_meta(args):
            return _squares(func, *args, **kwargs)
        return func(*args, **kwargs)


def _has_fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """Check the conditions for torch's fused kernels that depend on shapes."""
    plain = query.is_meta and query.dim() == 4 and query.shape[-1] == value.shape[-1]
    return plain and (attn_mask is None or not attn_mask.requires_grad)


def _has_efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """Whether values have another width than keys, as in DeepSeek's attention: the memory-efficient kernel takes both."""
    alike = query.dim() == 4 and query.shape[1] == key.shape[1] == value.shape[1]
    widths = query.shape[-1] != value.shape[-1]
    return query.is_meta and alike and widths and (attn_mask is None or not attn_mask.requires_grad)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    attn_mask = _as_added(attn_mask, query)
    # The CPU's flash kernel has the GPU kernel's shapes, takes a mask, and needs no GPU for a
    # trace. Dropout inside the GPU's kernel keeps only a seed.
    output, _ = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )
    return output


def _efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    added = _as_added(attn_mask, query)
    if added is not None:
        added = added.expand(*query.shape[:-1], key.shape[-2])
    output, *_ = aten._scaled_dot_product_efficient_attention(
        query, key, value, added, True, 0.0, is_causal, scale=scale
    )
    return output


def _as_added(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """A mask as numbers that are added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    added = torch.zeros_like(mask, dtype=query.dtype)
    return added.masked_fill_(mask.logical_not(), float("-inf"))


def _is_meta(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_meta


def _dropout(func: Any, *args: Any, **kwargs: Any) -> Any:
    if func is F.dropout:
        return _functional_dropout(func, *args, **kwargs)
    return _plain_dropout(func, *args, **kwargs)


def _functional_dropout(
    func: Any, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    if inplace or not training or not 0.0 < p < 1.0:
        return func(input, p, training, inplace)
    return aten.native_dropout(input, p, True)[0]


def _plain_dropout(func: Any, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if not train or not 0.0 < p < 1.0:
        return func(input, p, train)
    return aten.native_dropout(input, p, True)[0]


def _squares(func: Any, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    result = func(input, *args, **kwargs)
    if result.numel() < input.numel():
        torch.empty_like(input)  # the squares, alive for a moment
    return result
