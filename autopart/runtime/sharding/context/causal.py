"""Causal attention of a rank's rows to all keys.

The rows are the rank's chunks i and 2c - 1 - i of the sequence. Chunk j may read the keys of chunks 0 to j. Its own
chunk is a causal square; what lies before it is a rectangle without a mask. Each block gives an output o_b and
the logarithm l_b of its sum of exponents, and the whole softmax is

    l = log(sum_b exp(l_b)),    o = sum_b exp(l_b - l) o_b

as in blockwise and ring attention (Liu et al., 2023). The backward of a block needs o and l of the whole row only, since
its likelihoods are exp(score - l). No mask exists anywhere. All ranks compute (2c - 1) rectangles and 2 triangles of
chunks, which is half of their rows times all keys.

Elsewhere than on a CPU, and with dropout, each chunk calls torch's attention with a lower right causal bias: kernels that know
it write no mask out, others a mask of the chunk's rows.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import custom_op
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from autopart.runtime.sharding.groups import group_named

aten = torch.ops.aten


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scale: float | None,
    enable_gqa: bool,
    degree: int,
    group: str,
) -> torch.Tensor:
    """Return attention of the rank's rows `query` to whole `key` and `value` under a causal mask.

    A whole `query` gives whole attention.
    """
    attend = aten.scaled_dot_product_attention.default
    if query.shape[-2] == key.shape[-2]:
        return attend(query, key, value, None, dropout, True, scale=scale, enable_gqa=enable_gqa)
    has_no_numbers = query.is_meta or isinstance(query, FakeTensor)
    is_fused = (
        (has_no_numbers or (query.device.type == "cpu" and not dropout))
        and query.dim() == 4
        and query.shape[-1] == value.shape[-1]
        and (enable_gqa or query.shape[1] == key.shape[1])
    )
    if is_fused:
        return _CausalRows.apply(query, key, value, scale, degree, group)  # pyright: ignore[reportReturnType]
    size, rank = key.shape[-2] // (2 * degree), group_named(group).rank()
    found: list[torch.Tensor] = []
    for own, chunk in zip(query.chunk(2, -2), (rank, 2 * degree - 1 - rank), strict=True):
        keys, values = (x.narrow(-2, 0, (chunk + 1) * size) for x in (key, value))
        bias = _lower_right(size, keys, has_no_numbers=has_no_numbers)
        mixed = functional.scaled_dot_product_attention(
            own, keys, values, bias, dropout, scale=scale, enable_gqa=enable_gqa
        )
        found.append(mixed)
    return torch.cat(found, -2)


def _lower_right(size: int, keys: torch.Tensor, *, has_no_numbers: bool) -> torch.Tensor:
    """Return the mask of a chunk's rows: on a GPU, one that its kernels know."""
    count = keys.shape[-2]
    if keys.is_cuda and not has_no_numbers:
        return causal_lower_right(size, count)
    mask = torch.ones(size, count, dtype=torch.bool, device=keys.device)
    return mask.tril(count - size)


class _Block(NamedTuple):
    """Consecutive rows of the rank, and the keys that they read in one kernel."""

    rows: slice
    keys: slice
    causal: bool


def _blocks(size: int, degree: int, rank: int) -> list[list[_Block]]:
    """Return the blocks of both chunks: the square on the diagonal, and the rectangle before it."""
    chunk = size // (2 * degree)
    found: list[list[_Block]] = []
    for place, own in enumerate((rank, 2 * degree - 1 - rank)):
        rows = slice(place * chunk, (place + 1) * chunk)
        before = [_Block(rows, slice(0, own * chunk), False)] if own else []
        found.append([_Block(rows, slice(own * chunk, (own + 1) * chunk), True), *before])
    return found


@custom_op("autopart_attention::_scaled_dot_product_causal_rows", mutates_args=())
def causal_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    degree: int,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the logarithm of each row's sum of exponents."""
    output, logarithm = torch.empty_like(query), _per_row(query)
    for blocks in _blocks(key.shape[2], degree, group_named(group).rank()):
        found = [
            aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, b.rows],
                key[:, :, b.keys],
                value[:, :, b.keys],
                0.0,
                b.causal,
                scale=scale,
            )
            for b in blocks
        ]
        total = torch.stack([one[1] for one in found]).logsumexp(0)
        shares = [(one[1] - total).exp()[..., None] * one[0] for one in found]
        output[:, :, blocks[0].rows] = sum(shares[1:], shares[0])
        logarithm[:, :, blocks[0].rows] = total
    return output, logarithm


@custom_op("autopart_attention::_scaled_dot_product_causal_rows_backward", mutates_args=())
def causal_rows_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forward: Sequence[torch.Tensor],
    scale: float | None,
    degree: int,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key and value; `forward` has what the forward returned."""
    output, logarithm = forward
    found = (torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value))
    for blocks in _blocks(key.shape[2], degree, group_named(group).rank()):
        for b in blocks:
            own = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, b.rows],
                query[:, :, b.rows],
                key[:, :, b.keys],
                value[:, :, b.keys],
                output[:, :, b.rows],
                logarithm[:, :, b.rows],
                0.0,
                b.causal,
                scale=scale,
            )
            for whole, part, place in zip(found, own, (b.rows, b.keys, b.keys), strict=True):
                whole[:, :, place] += part
    return found


@causal_rows.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    degree: int,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), _per_row(query)


@causal_rows_backward.register_fake
def _(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forward: Sequence[torch.Tensor],
    scale: float | None,
    degree: int,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _CausalRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        degree: int,
        group: str,
    ) -> torch.Tensor:
        output, logarithm = causal_rows(query, key, value, scale, degree, group)
        ctx.save_for_backward(query, key, value, output, logarithm)
        ctx.places = (scale, degree, group)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, *forward = ctx.saved_tensors
        found = causal_rows_backward(gradients[0], query, key, value, forward, *ctx.places)
        return *found, None, None, None


def _per_row(query: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape[:3], dtype=dtype)
