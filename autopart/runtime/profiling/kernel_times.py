"""Seconds of operations under a kernel model.

Symbols   f, b        floating-point operations and moved bytes of one operation
          F, M        peak rate for its dtype, and memory bandwidth
          s, s0       share of F that large products reach, and the depth at which half of it is reached
          g           share of M that streaming kernels reach
          u           share of the multiprocessors' time in which tiles of the product run
          d           depth of the product: terms per sum
          o, h        seconds per kernel on the device, and per operation on the host

    product     max( f / (s F u d / (d + s0)),  b / (g M) ) + o
    attention   max( f / (attention share F),  b / (g M) ) + o      with half the operations under a causal mask
    random      b / (random share M) + o
    memory      b / (g M) + o                     with g of the operation itself, where a calibration measured it
    pass over a layer = max( sum over its operations,  their number x h )

On a CPU products and attention take the sum of both terms, not the longer one: the core that computes also waits for operands
from beyond its caches, and copies them into the order in which it computes. A calibration may give an operation a share and a
start of its own there. The host runs ahead of the device, so its time is a floor under the sum, not under each operation. A product's result is
cut into tiles. Each of P multiprocessors computes one tile at a time, so the last wave may be partly empty:

    u = rows x columns / (waves x P x tile),   waves = ceil(tiles / P)

The library chooses among tiles, and may split the depth over several multiprocessors; the best choice counts. Tiles and waves
follow NVIDIA's guide to matrix multiplication ("Matrix Multiplication Background", tile and wave quantization).
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autopart.records.gpu import Gpu
from autopart.records.kernels import (
    Kernels,
    peak_bandwidth,
    peak_flops,
    rate_of,
    share_of,
)
from autopart.runtime.profiling.op_costs import OpCost
from autopart.runtime.profiling.op_kinds import ProductShape

_TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.85), (64, 64, 0.7))
"""Rows and columns of a tile, and the share of the largest tile's rate: smaller tiles load more per operation."""
_SPLITS = ((1, 1.0), (2, 0.97), (4, 0.97))
"""Parts into which the depth is split, and the share that their sum leaves."""
_LEAST_DEPTH = 512
"""Depth per part below which no product is split."""


class _Bounds(NamedTuple):
    """The seconds of one operation by what it waits for; it takes the longer, and `after` besides."""

    compute: float
    memory: float
    after: float
    """Seconds for the kernel itself, and for an addition to the gradient."""

    @property
    def alone(self) -> float:
        """Seconds of the operation with nothing beside it."""
        return max(self.compute, self.memory) + self.after


def kernel_seconds(costs: Iterable[OpCost], gpu: Gpu, kernels: Kernels, dtype: str) -> float:
    """Return the seconds of one pass over a layer: its operations, and no less than the host needs for them.

    An operation whose dtype has no known rate counts at the rate for `dtype`.
    """
    bounds = _bounds(costs, gpu, kernels, dtype)
    return max(sum(one.alone for one in bounds), len(bounds) * kernels.host_time)


def kernel_pair_seconds(
    forward: Sequence[OpCost], backward: Sequence[OpCost], gpu: Gpu, kernels: Kernels, dtype: str
) -> float:
    """Return the seconds for a forward beside a backward, on two streams that hide as much as they can.

    It is at least each alone, all computing, all streaming, and the host's time for both.
    """
    both = _bounds([*forward, *backward], gpu, kernels, dtype)
    return max(
        kernel_seconds(forward, gpu, kernels, dtype),
        kernel_seconds(backward, gpu, kernels, dtype),
        sum(one.compute for one in both),
        sum(one.memory + one.after for one in both),
        len(both) * kernels.host_time,
    )


def _bounds(costs: Iterable[OpCost], gpu: Gpu, kernels: Kernels, dtype: str) -> list[_Bounds]:
    """The bounds of all operations that start a kernel: a fused addition to the gradient starts none."""
    fused = kernels.accumulation == "fused"
    return [
        _bounds_of(cost, gpu, kernels, dtype)
        for cost in costs
        if not (fused and cost.summed_bytes and cost.kind == "memory")
    ]


def _bounds_of(cost: OpCost, gpu: Gpu, kernels: Kernels, dtype: str) -> _Bounds:
    shares, name = kernels.shares, str(cost.dtype).removeprefix("torch.")
    rate, bandwidth = peak_flops(gpu, kernels, dtype, name), peak_bandwidth(gpu, kernels)
    streaming = shares.memory * bandwidth
    memory, after = cost.moved_bytes / streaming, kernels.kernel_time
    if gpu.name == "cpu" and cost.kind in ("products", "attention"):
        memory, after = 0.0, after + memory
    match cost.kind:
        case "products":
            own = rate_of(kernels, "products", cost.name)
            after += own.start
            # Tiles of a GPU's backward are other ones than those of the forward.
            tiled = gpu.multiprocessors > 0 and cost.name == "convolution_backward"
            product = None if tiled else cost.product
            use = product_use(product, gpu.multiprocessors, own.depth)
            if cost.summed_bytes and kernels.accumulation == "separate":
                # The product is written. An operation of its own reads it and the sum, and writes the sum.
                after += 3 * cost.summed_bytes / streaming + kernels.kernel_time
            return _Bounds(cost.flops / (own.share * use * rate), memory, after)
        case "attention":
            flops = cost.flops / 2 if cost.causal else cost.flops
            own = rate_of(kernels, "attention", cost.name)
            return _Bounds(flops / (own.share * rate), memory, after + own.start)
        case "random":
            return _Bounds(0.0, cost.moved_bytes / (shares.random * bandwidth), after)
        case _:
            share = share_of(kernels, cost.name)
            return _Bounds(0.0, cost.moved_bytes / (share * bandwidth), after)


@functools.lru_cache(maxsize=4096)
def product_use(product: ProductShape | None, multiprocessors: int, depth: int) -> float:
    """Return the share of the best rate that a product's shape leaves, above 0 to 1; 1 for an unknown shape."""
    if product is None or 0 in product:
        return 1.0
    by_depth = product.depth / (product.depth + depth)
    if multiprocessors == 0:
        return by_depth
    best = 0.0
    for rows, columns, rate in _TILES:
        tiles = (
            product.batch * math.ceil(product.rows / rows) * math.ceil(product.columns / columns)
        )
        for parts, left in _SPLITS:
            if parts > 1 and product.depth < parts * _LEAST_DEPTH:
                continue
            waves = math.ceil(tiles * parts / multiprocessors)
            whole = waves * multiprocessors * rows * columns
            use = product.batch * product.rows * product.columns * parts / whole
            best = max(best, use * rate * left)
    return best * by_depth
