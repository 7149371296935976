"""The operations that `autopart probe --kernels` times: products, attention, streaming, dropout, and a step of small ones."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from autopart.runtime.profiling.fused_ops import FusedOps
from autopart.runtime.profiling.op_costs import OpCost, OpCosts

Kind = Literal["products", "attention", "memory", "random", "launch"]
Action = Callable[[], object]
_VOCABULARY_ROWS = 4096
"""Rows of the embedding's table."""


class Operation(NamedTuple):
    """One operation on tensors of one size."""

    name: str
    """Its name; a name that ends in `backward` is the gradient of the one before it."""
    kind: Kind
    shape: tuple[int, ...]
    """As `MeasuredKernel.shape` says."""


class GridSizes(NamedTuple):
    """Sizes that fill a device for some microseconds to some milliseconds."""

    products: tuple[int, ...]
    """Rows, columns and depths."""
    linears: tuple[tuple[int, int, int], ...]
    """Rows, columns and depths of layers with weight and bias."""
    batches: tuple[tuple[int, int, int, int], ...]
    """Batched products: how many, rows, columns and depths."""
    convolutions: tuple[tuple[int, int, int], ...]
    attention: tuple[tuple[int, int, int], ...]
    streams: tuple[tuple[int, int], ...]


_ON_CPU = GridSizes(
    products=(64, 256, 1024),
    linears=((256, 128, 128), (256, 512, 128), (512, 256, 256), (128, 256, 1024), (512, 2048, 128)),
    batches=((16, 64, 64, 32), (16, 128, 128, 64), (4, 128, 512, 128)),
    convolutions=(
        (4, 8, 64),
        (4, 16, 16),
        (4, 16, 32),
        (4, 32, 8),
        (4, 64, 4),
        (4, 64, 16),
        (4, 128, 4),
        (4, 128, 16),
        (2, 64, 64),
    ),
    attention=((16, 64, 32), (16, 128, 64), (4, 512, 64)),
    streams=((256, 128), (256, 1024), (1024, 1024), (4096, 1024)),
)
_ON_GPU = GridSizes(
    products=(512, 2048, 8192),
    linears=((2048, 2048, 2048), (4096, 8192, 2048), (8192, 4096, 4096)),
    batches=((32, 1024, 1024, 64), (32, 2048, 2048, 128)),
    convolutions=((8, 64, 56), (8, 256, 28), (32, 256, 56)),
    attention=((32, 1024, 64), (32, 2048, 128), (32, 8192, 128)),
    # Beyond every GPU's cache, so that no rate passes the memory's.
    streams=((16384, 8192), (32768, 8192), (65536, 8192)),
)
_PLAIN = ("add", "copy")
_WITH_BACKWARD = (
    "gelu", "gelu_tanh", "silu", "relu", "layer_norm", "batch_norm", "softmax", "cross_entropy", "embedding",
    "max_pool",
)  # fmt: skip
PLAIN_STREAMS = (*_PLAIN, "relu")
"""Operations that compute next to nothing: all that no probe names stream as they do."""
_SMALL = (8, 8)
CALL, GRADIENT, STEP = "small call", "small gradient", "small step"
"""Launches: one small operation alone, its gradient alone, and the step of a small block, whose operations autograd starts as well."""


def operations(device: str) -> list[Operation]:
    """All operations for `cpu` or `cuda`; those with less work come first."""
    sizes = _ON_CPU if device == "cpu" else _ON_GPU
    own = sizes.products
    found = [
        Operation("product", "products", (rows, columns, depth))
        for rows in own
        for columns in own
        for depth in own
    ]
    for shape in sizes.linears:
        found += _both("linear", "products", shape)
    for shape in sizes.batches:
        found += _both("batched", "products", shape)
    for shape in sizes.convolutions:
        found += _both("convolution", "products", shape)
    for shape in sizes.attention:
        found += _both("attention", "attention", shape)
    for shape in sizes.streams:
        found += [Operation(name, "memory", shape) for name in _PLAIN]
        for name in _WITH_BACKWARD:
            found += _both(name, "memory", shape)
        found.append(Operation("dropout", "random", shape))
    on_cpu = device == "cpu"
    least_first = sorted(found, key=lambda one: work_of(costs_of(one, torch.float32, on_cpu), one))
    return [*(Operation(name, "launch", _SMALL) for name in (CALL, GRADIENT, STEP)), *least_first]


def work_of(costs: Sequence[OpCost], operation: Operation) -> float:
    """Floating-point operations that run, bytes where the operation streams, or operations of a step."""
    if operation.kind == "launch":
        return float(len(costs))
    if operation.kind in ("memory", "random"):
        return float(sum(cost.moved_bytes for cost in costs))
    return sum(cost.flops / (2 if cost.causal else 1) for cost in costs)


def costs_of(operation: Operation, dtype: torch.dtype, on_cpu: bool) -> list[OpCost]:
    """The operation as an analytic profile counts it, from a run on tensors without memory."""
    with FusedOps(dropout=not on_cpu), OpCosts() as costs:
        action = prepared(operation, dtype, torch.device("meta"))
        costs.take()
        action.run()
        return costs.take()


class Prepared(NamedTuple):
    """An operation on tensors that exist already."""

    run: Action
    """Runs the operation once."""
    received: torch.Tensor
    """The operand that the operation before it makes in a step: its input, or the gradient of its result."""


def prepared(operation: Operation, dtype: torch.dtype, device: torch.device) -> Prepared:
    """The operation, ready to run."""
    name, _, backward = operation.name.partition(" ")
    if operation.name == STEP:
        return _small_step(dtype, device)
    if operation.name == GRADIENT:
        name, backward = "small", "backward"
    build = _BUILD.get(name, _stream)
    inputs, run = build(name, operation.shape, dtype, device)
    if backward != "backward":
        return Prepared(run, inputs[0])
    for tensor in inputs:
        tensor.requires_grad_()
    result = run()
    ahead = torch.ones_like(result)
    return Prepared(lambda: torch.autograd.grad(result, inputs, ahead, retain_graph=True), ahead)


def _both(name: str, kind: Kind, shape: tuple[int, ...]) -> list[Operation]:
    return [Operation(name, kind, shape), Operation(f"{name} backward", kind, shape)]


Built = tuple[Sequence[torch.Tensor], Callable[[], torch.Tensor]]


def _numbers(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=device).uniform_(-1.0, 1.0)


def _product(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    rows, columns, depth = shape
    a, b = _numbers((rows, depth), dtype, device), _numbers((depth, columns), dtype, device)
    return (a, b), lambda: torch.mm(a, b)


def _batched(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    count, rows, columns, depth = shape
    a = _numbers((count, rows, depth), dtype, device)
    b = _numbers((count, depth, columns), dtype, device)
    return (a, b), lambda: torch.bmm(a, b)


def _linear(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    rows, columns, depth = shape
    x, weight = _numbers((rows, depth), dtype, device), _numbers((columns, depth), dtype, device)
    bias = _numbers((columns,), dtype, device)
    return (x, weight, bias), lambda: F.linear(x, weight, bias)


def _max_pool(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    rows, columns = shape
    images = _numbers((max(1, rows // 64), 64, columns), dtype, device).unflatten(-1, (-1, 16))
    return (images,), lambda: F.max_pool2d(images, 2)


def _convolution(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    samples, channels, side = shape
    image = _numbers((samples, channels, side, side), dtype, device)
    weight = _numbers((channels, channels, 3, 3), dtype, device)
    return (image, weight), lambda: F.conv2d(image, weight, padding=1)


def _attention(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    heads, length, width = shape
    query, key, value = (_numbers((1, heads, length, width), dtype, device) for _ in range(3))
    return (query, key, value), lambda: F.scaled_dot_product_attention(
        query, key, value, is_causal=True
    )


def _embedding(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    rows, columns = shape
    table = _numbers((_VOCABULARY_ROWS, columns), dtype, device)
    ids = (torch.arange(rows, device=device) * 7) % _VOCABULARY_ROWS
    return (table,), lambda: F.embedding(ids, table)


def _cross_entropy(_: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    rows, columns = shape
    logits = _numbers(shape, dtype, device)
    target = torch.arange(rows, device=device) % columns
    return (logits,), lambda: F.cross_entropy(logits, target)


def _stream(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Built:
    x = _numbers(shape, dtype, device)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "add": lambda: x + x,
        "small": lambda: x * 2.0,
        "copy": x.clone,
        "gelu": lambda: F.gelu(x),
        "gelu_tanh": lambda: F.gelu(x, approximate="tanh"),
        "silu": lambda: F.silu(x),
        "relu": lambda: F.relu(x),
        "batch_norm": lambda: F.batch_norm(x, None, None, training=True),
        "layer_norm": lambda: F.layer_norm(x, x.shape[-1:]),
        "softmax": lambda: x.softmax(-1),
        "dropout": lambda: F.dropout(x, 0.1, training=True),
    }
    return (x,), runs[name]


_BUILD: dict[str, Callable[[str, Sequence[int], torch.dtype, torch.device], Built]] = {
    "product": _product,
    "linear": _linear,
    "batched": _batched,
    "convolution": _convolution,
    "attention": _attention,
    "embedding": _embedding,
    "cross_entropy": _cross_entropy,
    "max_pool": _max_pool,
}


def _small_step(dtype: torch.dtype, device: torch.device) -> Prepared:
    """Forward and backward of a block so small that only the cost of its operations counts."""
    x, up, down = (_numbers(_SMALL, dtype, device).requires_grad_() for _ in range(3))
    ahead = torch.ones(_SMALL, dtype=dtype, device=device)

    def step() -> object:
        normed = F.layer_norm(x, x.shape[-1:])
        result = x + F.linear(F.gelu(F.linear(normed, up)), down)
        return torch.autograd.grad(result, (x, up, down), ahead)

    return Prepared(step, x)
