"""Torch's own context parallel attention on processes with gloo, and the collectives that it makes.

Torch's `context_parallel` has no rule for the CPU's kernel. So its ring attention is called with this kernel: the loop,
the rotation and the merging of blocks are torch's.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.experimental._context_parallel import _attention as ring
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.runtime.sharding.context.exchange import own_chunks
from autopart.runtime.sharding.context.states import CONTEXT

aten = torch.ops.aten


class TorchsAttention(NamedTuple):
    """One rank's results, and the collectives of forward and backward as (name, bytes of the result)."""

    output: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    forward: list[tuple[str, int]]
    backward: list[tuple[str, int]]
    counted: dict[str, int]
    """Torch's own count of all collectives."""


class _Collectives(TorchDispatchMode):
    """A context that lists functional collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "_c10d_functional" and name.startswith(("all_", "reduce_")):
            self.found.append((name, result.nbytes))
        return result


def torchs_attention(
    process: int, tensors: tuple[torch.Tensor, ...], weights: torch.Tensor, rotation: str
) -> TorchsAttention:
    """Causal attention of whole (query, key, value), as one process of the pool; gradients are for weighted sums.

    `rotation` is torch's word for the exchange of keys and values: allgather, or alltoall for a ring.
    """
    group, size = distributed.group.WORLD, distributed.get_world_size()
    assert group is not None
    query, key, value = (own_chunks(x, (2, 1), size, process, CONTEXT) for x in tensors)
    gradient = own_chunks(weights, (2, 1), size, process, CONTEXT)
    ring.set_rotate_method(rotation)
    assert ring._cp_options.enable_load_balance
    with CommDebugMode() as counts, _Collectives() as forward:
        output, logarithm, *_ = ring._templated_ring_attention(
            group, 2, _forward, query, key, value, is_causal=True
        )
    with CommDebugMode() as more, _Collectives() as backward:
        gradients = ring._templated_ring_attention_backward(
            group, 2, _backward, gradient, "grad_out", query, key, value, output, logarithm, True
        )
    counted = {
        str(packet.__name__): count
        for comm in (counts, more)
        for packet, count in comm.get_comm_counts().items()
    }
    return TorchsAttention(output, tuple(gradients), forward.found, backward.found, counted)


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool
) -> tuple[torch.Tensor, ...]:
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal)


def _backward(
    *,
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    is_causal: bool,
) -> tuple[torch.Tensor, ...]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, logsumexp, 0.0, is_causal
    )
