"""Shares of kernels, fitted to the measured seconds of single operations.

Symbols   y     measured seconds of one operation
          c     seconds to start it, of kernels of other classes within it, and on a CPU of a product's operands
          a     its predicted seconds in kernels of its own class, at the table's share

A class is one kind of kernels, or one operation by its name in torch. Its stretch is the geometric mean of (y - c) / a over its
rows, so that as many rows are too slow as too fast. Its share becomes the table's share over the stretch. A row says nothing
where a is less than a tenth of y, or where a product waits for a GPU's memory.

The depth at which products reach half of their share, and the seconds to start an operation with a rate of its own, are those
of a list with the least errors on their rows.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.calibration.fit import most_share
from autopart.records.calibration import MeasuredKernel
from autopart.records.gpu import Gpu
from autopart.records.kernels import Kernels, OwnRate, stretched
from autopart.runtime.probing.kernel_operations import PLAIN_STREAMS
from autopart.runtime.profiling.kernel_times import kernel_seconds
from autopart.runtime.profiling.op_costs import OpCost

DEPTHS = (0, 4, 8, 16, 32, 64, 128, 256, 512)
"""Depths that are tried."""
_STARTS = (0.0, 1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4)
"""Seconds to start such an operation that are tried."""
_OF_THEIR_OWN = (
    ("linear",), ("batched", "batched backward"), ("convolution",), ("convolution backward",),
    ("attention",), ("attention backward",),
)  # fmt: skip
"""Operations with a rate of their own, where they were measured on a CPU; those in one group share a rate."""
_LEAST_PART = 0.1


class KernelRow(NamedTuple):
    """One measured operation and what an analytic profile counts for it."""

    kernel: MeasuredKernel
    costs: Sequence[OpCost]
    start: float
    """Seconds to start autograd's engine, which a row with a gradient alone contains."""


class MeasuredDevice(NamedTuple):
    """The device that was measured, as the known GPU, and the dtype."""

    gpu: Gpu
    dtype: str


def fitted_kernels(
    rows: Sequence[KernelRow], table: Kernels, device: MeasuredDevice, depths: Sequence[int]
) -> Kernels:
    """The table with the shares of all classes, each fitted beside those before it, and the best of `depths`."""
    most = most_share(device.gpu.name)
    # Step 1: streams that compute next to nothing. They stand for all that are not measured by name.
    plain = [row for row in rows if row.kernel.operation in PLAIN_STREAMS]
    found = _with_share(table, "memory", _stretch(plain, _is_of("memory"), table, device), most)
    # Step 2: other streaming operations, by their names in torch.
    single: dict[str, float] = {}
    named = [row for row in rows if row.kernel.kind == "memory" and row not in plain]
    for operation in dict.fromkeys(row.kernel.operation for row in named):
        own = [row for row in named if row.kernel.operation == operation]
        by = _stretch(own, _is_of("memory"), found, device)
        single |= {
            cost.name: min(most, found.shares.memory / by) for row in own for cost in row.costs
        }
    found = msgspec.structs.replace(found, bandwidths=single or msgspec.UNSET)
    # Step 3: dropout, attention and products, with streams beside them as fitted.
    groups = _OF_THEIR_OWN if device.gpu.name == "cpu" else ()
    for kind in ("random", "attention"):
        own = _of_kind(rows, kind)
        found = _with_share(found, kind, _stretch(own, _is_of(kind), found, device), most)
    alone = {operation for group in groups for operation in group}
    own = [row for row in _of_kind(rows, "products") if row.kernel.operation not in alone]
    found = _with_depth(own, found, device, depths)
    # Step 4: operations with a rate of their own.
    for group in groups:
        own = [row for row in rows if row.kernel.operation in group]
        if own:
            found = _with_rate(own, found, device)
    return found


def row_errors(rows: Sequence[KernelRow], kernels: Kernels, device: MeasuredDevice) -> np.ndarray:
    """Predicted over measured seconds minus 1."""
    return np.array([_seconds(row, kernels, device) / row.kernel.seconds - 1.0 for row in rows])


def _of_kind(rows: Sequence[KernelRow], kind: str) -> list[KernelRow]:
    return [row for row in rows if row.kernel.kind == kind]


def _with_depth(
    rows: Sequence[KernelRow], table: Kernels, device: MeasuredDevice, depths: Sequence[int]
) -> Kernels:
    """The table with the share of products, and the depth under which they are nearest to their rows."""
    most = most_share(device.gpu.name)
    tried: list[Kernels] = []
    for depth in depths:
        at_depth = msgspec.structs.replace(table, depth=depth)
        by = _stretch(rows, _is_of("products"), at_depth, device)
        tried.append(_with_share(at_depth, "products", by, most))
    # Rows of one depth alone fit all depths alike: the first one counts.
    return min(tried, key=lambda one: _squares(rows, one, device))


def _with_rate(rows: Sequence[KernelRow], table: Kernels, device: MeasuredDevice) -> Kernels:
    """The kernels with the rate of one operation: its share, its start, and for a convolution its depth."""
    most, kind = most_share(device.gpu.name), rows[0].kernel.kind
    (name,) = {cost.name for cost in rows[0].costs if cost.kind == kind}
    usual = OwnRate(share=getattr(table.shares, kind), depth=table.depth * (kind == "products"))
    others = dict(table.rates or {})
    depths = DEPTHS if name.startswith("convolution") else (usual.depth,)
    choices = [(depth, start) for depth in depths for start in _STARTS]
    tried: list[Kernels] = []
    for depth, start in choices:
        own = OwnRate(share=usual.share, depth=depth, start=start)
        begun = msgspec.structs.replace(table, rates={**others, name: own})
        by = _stretch(rows, lambda cost: cost.name == name, begun, device)
        fitted = msgspec.structs.replace(own, share=min(most, usual.share / by))
        tried.append(msgspec.structs.replace(table, rates={**others, name: fitted}))
    return min(tried, key=lambda one: _squares(rows, one, device))


def _squares(rows: Sequence[KernelRow], kernels: Kernels, device: MeasuredDevice) -> float:
    """The sum over the squared errors in the logarithm, rounded so that equal fits tie."""
    return round(float((np.log1p(row_errors(rows, kernels, device)) ** 2).sum()), 6)


def _with_share(kernels: Kernels, kind: str, stretch: float, most: float) -> Kernels:
    share = min(most, getattr(kernels.shares, kind) / stretch)
    return msgspec.structs.replace(
        kernels, shares=msgspec.structs.replace(kernels.shares, **{kind: share})
    )


def _is_of(kind: str) -> Callable[[OpCost], bool]:
    return lambda cost: cost.kind == kind


def _stretch(
    rows: Iterable[KernelRow],
    is_own: Callable[[OpCost], bool],
    kernels: Kernels,
    device: MeasuredDevice,
) -> float:
    """The geometric mean of measured over predicted seconds in the class's kernels; 1 where no row says anything."""
    logs: list[float] = []
    for row in rows:
        ahead = msgspec.structs.replace(kernels, host_time=0.0, kernel_time=0.0)
        own = [cost for cost in row.costs if is_own(cost)]
        once = kernel_seconds(own, *_under(ahead, device))
        twice = kernel_seconds(own, *_under(_slower(ahead, row.kernel.kind), device))
        # A CPU adds the seconds of a product's operands, which no share of products changes.
        seconds = twice - once if device.gpu.name == "cpu" else once
        left = row.kernel.seconds - (_seconds(row, kernels, device) - seconds)
        if left > _LEAST_PART * row.kernel.seconds and twice > 1.8 * seconds > 0.0:
            logs.append(math.log(left / seconds))
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def _slower(kernels: Kernels, kind: str) -> Kernels:
    """The kernels with half the share of one kind, and of the operations that have a share of their own."""
    rates = {
        name: msgspec.structs.replace(one, share=one.share / 2.0)
        for name, one in (kernels.rates or {}).items()
    }
    return msgspec.structs.replace(stretched(kernels, kind, 2.0), rates=rates or msgspec.UNSET)


def _under(kernels: Kernels, device: MeasuredDevice) -> tuple[Gpu, Kernels, str]:
    return device.gpu, kernels, device.dtype


def _seconds(row: KernelRow, kernels: Kernels, device: MeasuredDevice) -> float:
    """Predicted seconds. The host's floor is left out: an operation alone runs ahead of nothing."""
    alone = msgspec.structs.replace(kernels, host_time=0.0)
    return row.start + kernel_seconds(row.costs, *_under(alone, device))
