"""Attention of a rank's rows to all keys, which go around a ring in blocks.

Rank i of c begins with its own keys and values. In each of c turns it attends to the block that it has, and in all
but the last it sends this block to rank i + 1 and receives that of rank i - 1 meanwhile. So in turn t it has the block of
rank i - t. Each turn gives an output o_t and the logarithm l_t of its sum of exponents. Turn by turn they are merged:

    l = log(exp(l) + exp(l_t)),    o = exp(l_old - l) o_old + exp(l_t - l) o_t

Under a causal mask, rank i has chunks i and 2c - 1 - i of the sequence. With the block of rank j there are three cases:

| j | rows that read | keys that they read | mask |
|---|---|---|---|
| j = i | all | all | causal |
| j < i | all | chunk j, the first half | none |
| j > i | chunk 2c - 1 - i, the second half | all | none |

Each is two squares of a chunk, so all turns of all ranks have equal work.

The backward turns the ring the other way. It begins with the block that the forward had last, that of rank i + 1, which is
the only one that stays. A block's gradients travel one turn behind it, and each rank adds its own. The last turn is
on the rank's own block, so its gradients are whole then. No message beyond c - 1 blocks and c - 1 gradients is needed.
"""

# pyright: reportPrivateUsage=false

from typing import Any, NamedTuple

import torch

from autopart.runtime.sharding.groups import Arrival, group_named

aten = torch.ops.aten
_ALL = slice(None)


def ring_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    degree: int,
    group: str,
) -> torch.Tensor:
    """Return attention of the rank's rows to the keys and values of all ranks.

    All tensors are (samples, heads, the rank's positions, width), with one width. There may be fewer heads of keys.
    """
    return _Ring.apply(query, key, value, is_causal, scale, degree, group)  # pyright: ignore[reportReturnType]


class _Pair(NamedTuple):
    """The rank's rows and a block's keys that meet in one turn."""

    rows: slice
    keys: slice
    causal: bool


def _pair(rank: int, source: int, size: int, *, is_causal: bool) -> _Pair:
    """Return what meets where `rank` has the block of rank `source`; both have `size` positions under a causal mask."""
    if not is_causal or source == rank:
        return _Pair(_ALL, _ALL, is_causal)
    if source < rank:
        return _Pair(_ALL, slice(0, size // 2), False)
    return _Pair(slice(size // 2, size), _ALL, False)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        is_causal: bool,
        scale: float | None,
        degree: int,
        group: str,
    ) -> torch.Tensor:
        ranks = group_named(group)
        rank, block = ranks.rank(), _joined(key, value)
        output = torch.zeros_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
        logarithm = output.new_full(query.shape[:3], float("-inf"))
        for turn in range(degree):
            coming = ranks.shift(block, 1) if turn < degree - 1 else None
            pair = _pair(rank, (rank - turn) % degree, key.shape[2], is_causal=is_causal)
            keys, values = (x[:, :, pair.keys] for x in _parts(block, key.shape))
            found, own = _attend(query[:, :, pair.rows], keys, values, scale, causal=pair.causal)
            _merge(output[:, :, pair.rows], logarithm[:, :, pair.rows], found, own)
            block = block if coming is None else coming()
        output = output.to(query.dtype)
        ctx.save_for_backward(query, block, output, logarithm)
        ctx.own = (is_causal, scale, degree, group, key.shape)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, block, output, logarithm = ctx.saved_tensors
        is_causal, scale, degree, group, shape = ctx.own
        ranks, of_query = group_named(group), torch.zeros_like(query)
        rank, of_block = ranks.rank(), block
        earlier: Arrival | None = None
        for turn in range(degree):
            is_last = turn == degree - 1
            coming = None if is_last else ranks.shift(block, -1)
            pair = _pair(rank, (rank + 1 + turn) % degree, shape[2], is_causal=is_causal)
            keys, values = (x[:, :, pair.keys] for x in _parts(block, shape))
            rows = [x[:, :, pair.rows] for x in (gradients[0], query, output, logarithm)]
            found = _attend_backward(rows, keys, values, scale, causal=pair.causal)
            of_query[:, :, pair.rows] += found[0]
            of_block = torch.zeros_like(block)
            for whole, part in zip(_parts(of_block, shape), found[1:], strict=True):
                whole[:, :, pair.keys] = part
            # The gradients of this block from the ranks that had it before, which came meanwhile.
            if earlier is not None:
                of_block += earlier()
            if coming is not None:
                earlier, block = ranks.shift(of_block, -1), coming()
        return of_query, *_parts(of_block, shape), None, None, None, None


def _joined(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a block: keys, then values, in one message."""
    return torch.cat([key.reshape(-1), value.reshape(-1)])


def _parts(block: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and the values of a block. They are views."""
    keys, values = block.chunk(2)
    return keys.view(shape), values.view(shape)


def _merge(
    output: torch.Tensor, logarithm: torch.Tensor, found: torch.Tensor, own: torch.Tensor
) -> None:
    """Merge a turn's result into that of the turns before, in place."""
    total = torch.logaddexp(logarithm, own)
    output.mul_((logarithm - total).exp_()[..., None])
    output.addcmul_((own - total).exp_()[..., None].to(output.dtype), found.to(output.dtype))
    logarithm.copy_(total)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float | None,
    *,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention, and the logarithm of each row's sum of exponents."""
    if query.is_cuda:
        attend = aten._scaled_dot_product_flash_attention
        output, logarithm, *_ = attend(query, keys, values, 0.0, causal, False, scale=scale)
        return output, logarithm
    attend = aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, keys, values, 0.0, causal, scale=scale)


def _attend_backward(
    rows: list[torch.Tensor],
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float | None,
    *,
    causal: bool,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of query, keys and values; `rows` are gradient, query, output and logarithm of whole rows."""
    gradient, query, output, logarithm = rows
    given = (gradient, query, keys, values, output, logarithm)
    if not query.is_cuda:
        attend = aten._scaled_dot_product_flash_attention_for_cpu_backward
        return attend(*given, 0.0, causal, scale=scale)
    # Without dropout no random state is read, and without packed sequences no lengths are.
    state = query.new_empty(2, dtype=torch.uint64)
    lengths = (None, None, query.shape[2], keys.shape[2])
    attend = aten._scaled_dot_product_flash_attention_backward
    return attend(*given, *lengths, 0.0, causal, state, state.new_empty(0), scale=scale)
