"""Floating-point operations and moved bytes, operation by operation.

Operations are counted where they reach a kernel, below autograd. A backward therefore counts like a
forward, and an input gradient alone costs only its own operations. FLOPs are torch's own count (a
multiply-add is two, and a causal attention mask saves nothing). Bytes count each operand read once
and each result written once. Savings by fusion and cache misses are not known here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from autopart.runtime.profiling.op_kinds import (
    OpKind,
    ProductShape,
    SeenKernels,
    is_causal,
    is_grouped,
    kind_of,
    product_of,
)

aten = torch.ops.aten

_GATHERS = frozenset(
    {
        aten.embedding,
        aten.gather,
        aten.index,
        aten.index_select,
        aten.nll_loss2d_forward,
        aten.nll_loss_forward,
    }
)
"""Operations that read no more from a large operand than they write."""

_WRITES_ONLY = frozenset(
    {
        aten.full_like,
        aten.new_full,
        aten.new_ones,
        aten.new_zeros,
        aten.ones_like,
        aten.zero_,
        aten.zeros_like,
    }
)
"""Operations that take only an operand's shape and never read it."""

_FREE = frozenset(
    {
        aten._unsafe_view,
        aten.empty,
        aten.empty_like,
        aten.empty_strided,
        aten.lift_fresh,
        aten.new_empty,
        aten.new_empty_strided,
    }
)
"""Operations that touch no element, like views, and start no kernel."""

COLLECTIVES = "autopart"
"""Namespace of the collectives inside a layer. Their seconds depend on a cluster, so none count here."""


CAUSAL_ROWS = "_scaled_dot_product_causal_rows"
"""Attention of a context rank's rows to all keys. It counts like torch's own attention on these rows: a causal mask
saves half, as the rank's rows lie evenly in the sequence."""


class OpCost(NamedTuple):
    """One operation that starts a kernel."""

    flops: int
    moved_bytes: int
    dtype: torch.dtype
    """The first floating operand's dtype, which decides the arithmetic rate."""
    kind: OpKind = "memory"
    product: ProductShape | None = None
    """The shape of a product; None where there is none, or it is not known."""
    summed_bytes: int = 0
    """Bytes of the gradient sum to which the operation adds; 0 where it adds to none."""
    causal: bool = False
    """Whether fused attention leaves out what a causal mask hides."""
    name: str = ""
    """Its name in torch, without its overload; `gelu tanh` for the approximation, which takes longer on a CPU."""


class OpCosts(TorchDispatchMode):
    """A context that lists the costs for all operations inside it."""

    def __init__(self, sums: Sequence[torch.Tensor] = ()) -> None:
        """Tell additions to `sums`, the gradients of the parameters, from other operations."""
        super().__init__()
        self._costs: list[OpCost] = []
        self._sums = {id(tensor): tensor for tensor in sums}
        self.seen = SeenKernels()

    def take(self) -> list[OpCost]:
        """Return the operations since the last call."""
        taken, self._costs = self._costs, []
        return taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = getattr(func, "overloadpacket", func)
        is_collective = getattr(func, "namespace", "") == COLLECTIVES
        if not getattr(func, "is_view", False) and packet not in _FREE and not is_collective:
            operands = _tensors((args, kwargs))
            product = product_of(packet, operands, result)
            self.seen.add(packet, product, result)
            cost = OpCost(
                flops=_flops(packet, args, kwargs, result),
                moved_bytes=_moved_bytes(packet, operands, _tensors(result)),
                dtype=_arithmetic_dtype(operands),
                kind=kind_of(packet),
                product=product,
                summed_bytes=self._summed_bytes(packet, operands),
                causal=is_causal(packet, args, kwargs),
                name=_name(packet, kwargs),
            )
            self.seen.note_work(cost.kind, cost.flops, cost.moved_bytes)
            self._costs.append(cost)
        return result

    def _summed_bytes(self, packet: Any, operands: Sequence[torch.Tensor]) -> int:
        adds = packet in (aten.add_, aten.addmm_) and id(operands[0]) in self._sums
        return _touched_bytes(operands[0]) if adds else 0


def _name(packet: Any, kwargs: dict[str, Any]) -> str:
    name = str(getattr(packet, "__name__", ""))
    return f"{name} tanh" if kwargs.get("approximate") == "tanh" else name


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        query, key, value = args[:3]
        return sdpa_flop_count(query.shape, key.shape, value.shape)
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        shapes = [tensor.shape for tensor in args[:4]]
        return sdpa_backward_flop_count(*shapes)
    name = str(getattr(packet, "__name__", ""))
    if name == CAUSAL_ROWS:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if name == f"{CAUSAL_ROWS}_backward":
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    if is_grouped(packet):
        return _grouped_flops(name, *(one for one in args if isinstance(one, torch.Tensor)))
    # Torch's registry has no in-place operations: `addmm_` counts as `addmm`.
    plain = getattr(aten, packet.__name__.removesuffix("_"), packet)
    count = flop_registry.get(packet) or flop_registry.get(plain)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def _grouped_flops(name: str, a: torch.Tensor, b: torch.Tensor, *_: torch.Tensor) -> int:
    """Return the FLOPs of products with one matrix per expert, which torch's registry lacks.

    Each row, column or term belongs to one expert, so there is one product of the whole `a` for all experts together.
    """
    together = 2 * a.shape[-2] * a.shape[-1] * b.shape[-1]
    each = a.shape[0] if a.ndim == b.ndim == 3 else 1
    # Transformers' backward makes the gradients of both operands.
    return together * each * (2 if name.endswith("_backward") else 1)


def _moved_bytes(
    packet: Any, operands: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
) -> int:
    written = sum(_touched_bytes(tensor) for tensor in results)
    if packet in _WRITES_ONLY:
        return written
    if packet in _GATHERS:
        indices = sum(_touched_bytes(t) for t in operands if not t.is_floating_point())
        return 2 * written + indices
    # An in-place result is also an operand: it is read, then written.
    return written + sum(_touched_bytes(tensor) for tensor in operands)


def _touched_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that the tensor occupies. An expanded tensor repeats them."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _arithmetic_dtype(operands: Sequence[torch.Tensor]) -> torch.dtype:
    floating = (tensor.dtype for tensor in operands if tensor.is_floating_point())
    return next(floating, torch.float32)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
