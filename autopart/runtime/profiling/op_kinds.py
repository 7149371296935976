"""The kinds of kernels, and the shapes of products, by which a kernel model times operations."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

aten = torch.ops.aten

OpKind = Literal["products", "attention", "memory", "random"]

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "convolution_backward")
_ATTENTION = "_scaled_dot_product_"
_RANDOM = ("native_dropout", "bernoulli", "rand", "randn", "uniform", "normal")


class ProductShape(NamedTuple):
    """One product of matrices, or `batch` of them: (rows, depth) x (depth, columns)."""

    batch: int
    rows: int
    columns: int
    depth: int


def kind_of(packet: Any) -> OpKind:
    """Return the kind of an operation's kernel, by its name without its overload."""
    name = _name(packet)
    if name.startswith(_ATTENTION):
        return "attention"
    if name in _PRODUCTS or is_grouped(packet):
        return "products"
    return "random" if name in _RANDOM else "memory"


def is_grouped(packet: Any) -> bool:
    """Tell whether an operation is a product with one matrix per expert: torch's own, or transformers' for a CPU."""
    return _name(packet).startswith(("_grouped_mm", "grouped_mm_fallback"))


def product_of(packet: Any, operands: Sequence[torch.Tensor], result: Any) -> ProductShape | None:
    """Return the shape of a product; None for other operations.

    A convolution is the product of its patches with its weight: a row per place in the result. Its backward has the same shape.
    """
    name = _name(packet)
    if name == "_grouped_mm":
        a, b = operands[:2]
        return _grouped(a, b, result)
    if name in ("mm", "addmm"):
        a, b = operands[-2:]
        return ProductShape(1, a.shape[0], b.shape[1], a.shape[1])
    if name in ("bmm", "baddbmm"):
        a, b = operands[-2:]
        return ProductShape(a.shape[0], a.shape[1], b.shape[2], a.shape[2])
    if name == "convolution":
        weight = operands[1]
        columns = int(weight.shape[0])
        depth = weight.numel() // max(1, columns)
        return ProductShape(1, result.numel() // max(1, columns), columns, depth)
    if name == "convolution_backward":
        ahead, _, weight = operands[:3]
        columns = int(weight.shape[0])
        depth = weight.numel() // max(1, columns)
        return ProductShape(1, ahead.numel() // max(1, columns), columns, depth)
    return None


def _grouped(a: torch.Tensor, b: torch.Tensor, result: torch.Tensor) -> ProductShape:
    """The shape of a product with a matrix for each group, at equal groups: rows, columns or the depth are divided among them."""
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    if a.dim() == b.dim() == 2:
        groups = result.shape[0]
        return ProductShape(groups, rows, columns, depth // groups)
    groups = (b if a.dim() == 2 else a).shape[0]
    if a.dim() == 2:
        return ProductShape(groups, rows // groups, columns, depth)
    return ProductShape(groups, rows, columns if b.dim() == 3 else columns // groups, depth)


def is_causal(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a fused attention kernel has a causal mask of its own."""
    name = _name(packet)
    if not name.startswith(_ATTENTION):
        return False
    if "causal_rows" in name:
        return True
    forward, backward = (6, 11) if "efficient" in name else (4, 7)
    place = backward if name.endswith("_backward") else forward
    return bool(kwargs.get("is_causal", args[place] if len(args) > place else False))


class SeenKernels:
    """The kernels that a model ran, as far as a profile names them."""

    def __init__(self) -> None:
        self._fused = False
        self._batched: set[tuple[int, int]] = set()
        """Rows and columns of batched products."""
        self._softmaxes: set[tuple[int, int]] = set()
        self.draws = False
        """Whether some operation draws numbers, as dropout does."""
        self.largest: dict[str, float] = {}
        """The most work of one operation by its kind: floating-point operations, or moved bytes."""

    def note_work(self, kind: OpKind, flops: int, moved_bytes: int) -> None:
        """Note the work of one operation."""
        work = flops if kind in ("products", "attention") else moved_bytes
        self.largest[kind] = max(self.largest.get(kind, 0.0), float(work))

    def add(self, packet: Any, product: ProductShape | None, result: Any) -> None:
        """Note one operation with its result."""
        kind, name = kind_of(packet), _name(packet)
        self._fused |= kind == "attention"
        self.draws |= kind == "random"
        if product is not None and name in ("bmm", "baddbmm"):
            self._batched.add((product.rows, product.columns))
        if name == "_softmax" and result.ndim > 2:
            self._softmaxes.add((result.shape[-2], result.shape[-1]))

    @property
    def attention(self) -> Literal["fused", "plain", "both", "none"]:
        """The kinds of attention. It is plain where a softmax runs over the result of a batch of products."""
        plain = bool(self._batched & self._softmaxes)
        if self._fused:
            return "both" if plain else "fused"
        return "plain" if plain else "none"


def _name(packet: Any) -> str:
    """The name of an operation, without the underscore of one in place."""
    name = str(getattr(packet, "__name__", ""))
    return name if name.startswith("_") else name.removesuffix("_")
