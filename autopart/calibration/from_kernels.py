"""A calibration from single kernels that `autopart probe --kernels` timed.

Symbols   y     measured seconds of one operation
          c     seconds to start it, and of kernels of other classes within it
          a     its predicted seconds in kernels of its own class, at the table's share

A class is one kind of kernels, or one streaming operation by name. Its stretch is the geometric mean of (y - c) / a over its rows,
so that as many rows are too slow as too fast. Its share becomes the table's share over the stretch. A row says nothing
where a is less than a tenth of y, or where a product waits for memory.

The seconds to start an operation come from a step of small ones. The depth at which products reach half of their share is the
one with the least errors on all rows. Errors on held-out rows come from fits without a fifth of the rows at a time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.calibration.fit import Stretches, most_share, rows_needed
from autopart.errors import UsageError
from autopart.records.calibration import Calibration, Fit, MeasuredKernel
from autopart.records.gpu import Gpu
from autopart.records.kernels import (
    KINDS,
    Kernels,
    kernels_of,
    peak_bandwidth,
    peak_flops,
    stretched,
    with_peaks,
)
from autopart.records.known_gpus import GPUS, find_gpu
from autopart.runtime.models.precision import dtype_of
from autopart.runtime.probing.kernel_operations import (
    CALL,
    PLAIN_STREAMS,
    STEP,
    Operation,
    costs_of,
)
from autopart.runtime.profiling.kernel_times import kernel_seconds
from autopart.runtime.profiling.op_costs import OpCost
from autopart.text import counted

_DEPTHS = (0, 4, 8, 16, 32, 64, 128, 256, 512)
"""Depths that are tried."""
_FOLDS = 5
_LEAST_PART = 0.1


class _Row(NamedTuple):
    """One measured operation and what an analytic profile counts for it."""

    kernel: MeasuredKernel
    costs: Sequence[OpCost]
    call: float | None
    """Measured seconds to start one of its operations on a CPU; None for the table's."""


class _Device(NamedTuple):
    gpu: Gpu
    dtype: str


def known_gpu(device: str, name: str, asked: str | None) -> Gpu:
    """The known GPU that was measured: the one asked for, or the one with the device's own name.

    Raises ClusterError for an unknown name, UsageError where the device's name is no known one.
    """
    if device == "cpu":
        if asked not in (None, "cpu"):
            raise UsageError(f"--gpu {asked}: kernels of a CPU make a calibration of 'cpu' only")
        return find_gpu("cpu")
    if asked is not None:
        return find_gpu(asked)
    for gpu in GPUS.values():
        if name in gpu.cuda_names:
            return gpu
    raise UsageError(f"the device '{name}' is no known GPU; name one with --gpu")


def calibrate_from_kernels(
    measured: Sequence[MeasuredKernel], made_from: str, gpu: Gpu, dtype: str, target: str
) -> tuple[Calibration, Stretches]:
    """The calibration of `gpu` in `dtype`, and the fit behind it.

    Raises UsageError where there are too few rows, or one of them has no seconds.
    """
    device = _Device(gpu, dtype)
    rows = _rows(measured, device)
    table = _with_launches(kernels_of(gpu, target), measured, gpu)
    kernels = _fitted(rows, table, device, _DEPTHS)
    errors = _errors(rows, kernels, device)
    held_out = np.zeros(len(rows))
    for fold in range(_FOLDS):
        left = [row for place, row in enumerate(rows) if place % _FOLDS != fold]
        fitted = _fitted(left, table, device, (kernels.depth,))
        held_out[fold::_FOLDS] = _errors(rows[fold::_FOLDS], fitted, device)
    kinds = tuple(kind for kind in KINDS if any(row.kernel.kind == kind for row in rows))
    found = Stretches(
        stretches={
            kind: getattr(table.shares, kind) / getattr(kernels.shares, kind) for kind in kinds
        },
        shares=kernels.shares,
        fit=Fit(
            rows=len(rows),
            kinds=kinds,
            mean_error=float(np.abs(errors).mean()),
            worst_error=float(np.abs(errors).max()),
            held_out_error=float(np.abs(held_out).mean()),
            held_out_worst=float(np.abs(held_out).max()),
        ),
        errors=tuple(map(float, errors)),
    )
    return Calibration(
        gpu=gpu.name,
        dtype=dtype,
        kernels=with_peaks(kernels, gpu, dtype, _best_rates(rows, table, device)),
        source="kernels",
        made_from=made_from,
        fit=found.fit,
        measured=tuple(measured),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    ), found


def _rows(measured: Sequence[MeasuredKernel], device: _Device) -> list[_Row]:
    own = [one for one in measured if one.kind != "launch"]
    if len(own) < rows_needed(1):
        few = counted(len(own), "kernel")
        raise UsageError(f"{few} for a calibration, where {rows_needed(1)} are needed")
    for one in own:
        if not one.seconds > 0.0:
            shape = " x ".join(map(str, one.shape))
            raise UsageError(f"{one.operation} {shape}: measured seconds must be above 0")
    on_cpu, dtype = device.gpu.name == "cpu", dtype_of(device.dtype)
    # A gradient goes through autograd, as in a step. Other rows call their operation alone.
    launches = {
        is_backward: _launch_time(measured, STEP if is_backward else CALL)
        for is_backward in (True, False)
    }
    return [
        _Row(
            one,
            costs_of(Operation(one.operation, one.kind, one.shape), dtype, on_cpu),
            launches[one.operation.endswith("backward")] if on_cpu else None,
        )
        for one in own
    ]


def _launch_time(measured: Sequence[MeasuredKernel], name: str) -> float | None:
    """Seconds per operation of the launch called `name`; None where it was not measured."""
    return next((own.seconds for own in measured if own.operation == name), None)


def _with_launches(table: Kernels, measured: Sequence[MeasuredKernel], gpu: Gpu) -> Kernels:
    """The table with the measured seconds per operation of a small step.

    A CPU computes on the thread that starts operations, so they add up. Beside a GPU they are the host's, a floor under a pass.
    """
    launch = _launch_time(measured, STEP)
    if launch is None:
        return table
    if gpu.name == "cpu":
        return msgspec.structs.replace(table, kernel_time=launch)
    return msgspec.structs.replace(table, host_time=launch)


def _fitted(
    rows: Sequence[_Row], table: Kernels, device: _Device, depths: Sequence[int]
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
    for kind in ("random", "attention"):
        own = [row for row in rows if row.kernel.kind == kind]
        found = _with_share(found, kind, _stretch(own, _is_of(kind), found, device), most)
    own = [row for row in rows if row.kernel.kind == "products"]
    return _with_depth(own, found, device, depths)


def _with_depth(
    rows: Sequence[_Row], table: Kernels, device: _Device, depths: Sequence[int]
) -> Kernels:
    """The table with the share of products, and the depth under which they are nearest to their rows."""
    most = most_share(device.gpu.name)
    tried: list[tuple[float, Kernels]] = []
    for depth in depths:
        at_depth = msgspec.structs.replace(table, depth=depth)
        by = _stretch(rows, _is_of("products"), at_depth, device)
        found = _with_share(at_depth, "products", by, most)
        tried.append((float((np.log1p(_errors(rows, found, device)) ** 2).sum()), found))
    # Rows of one depth alone fit all depths alike: the first one counts.
    return min(tried, key=lambda one: round(one[0], 6))[1]


def _with_share(kernels: Kernels, kind: str, stretch: float, most: float) -> Kernels:
    share = min(most, getattr(kernels.shares, kind) / stretch)
    return msgspec.structs.replace(
        kernels, shares=msgspec.structs.replace(kernels.shares, **{kind: share})
    )


def _is_of(kind: str) -> Callable[[OpCost], bool]:
    return lambda cost: cost.kind == kind


def _stretch(
    rows: Iterable[_Row], is_own: Callable[[OpCost], bool], kernels: Kernels, device: _Device
) -> float:
    """The geometric mean of measured over predicted seconds in the class's kernels; 1 where no row says anything."""
    logs: list[float] = []
    for row in rows:
        ahead = msgspec.structs.replace(kernels, host_time=0.0, kernel_time=0.0)
        own = [cost for cost in row.costs if is_own(cost)]
        seconds = kernel_seconds(own, *_under(ahead, device))
        kind = row.kernel.kind
        twice = kernel_seconds(own, *_under(stretched(ahead, kind, 2.0), device))
        rest = _seconds(row, kernels, device) - seconds
        left = row.kernel.seconds - rest
        if left > _LEAST_PART * row.kernel.seconds and twice > 1.8 * seconds > 0.0:
            logs.append(math.log(left / seconds))
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def _under(kernels: Kernels, device: _Device) -> tuple[Gpu, Kernels, str]:
    return device.gpu, kernels, device.dtype


def _seconds(row: _Row, kernels: Kernels, device: _Device) -> float:
    """Predicted seconds. The host's floor is left out: an operation alone runs ahead of nothing."""
    call = kernels.kernel_time if row.call is None else row.call
    alone = msgspec.structs.replace(kernels, host_time=0.0, kernel_time=call)
    return kernel_seconds(row.costs, *_under(alone, device))


def _errors(rows: Sequence[_Row], kernels: Kernels, device: _Device) -> np.ndarray:
    """Predicted over measured seconds minus 1."""
    return np.array([_seconds(row, kernels, device) / row.kernel.seconds - 1.0 for row in rows])


def _best_rates(rows: Sequence[_Row], table: Kernels, device: _Device) -> tuple[float, float]:
    """The highest measured operations and bytes per second; the table's where none were measured."""

    def best(kinds: Sequence[str], otherwise: float) -> float:
        own = [row.kernel for row in rows if row.kernel.kind in kinds]
        return max((one.amount / one.seconds for one in own), default=otherwise)

    return (
        best(("products", "attention"), peak_flops(device.gpu, table, device.dtype, device.dtype)),
        best(("memory", "random"), peak_bandwidth(device.gpu, table)),
    )
