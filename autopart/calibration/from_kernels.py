"""A calibration from single kernels that `autopart probe --kernels` timed.

The seconds to start an operation come from a step of small ones, the shares from the fit of calibration/kernel_fit.py. Errors on
held-out rows come from fits without a fifth of the rows at a time.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np

from autopart.calibration.fit import Stretches, rows_needed
from autopart.calibration.kernel_fit import (
    DEPTHS,
    KernelRow,
    MeasuredDevice,
    fitted_kernels,
    row_errors,
)
from autopart.errors import UsageError
from autopart.records.calibration import Calibration, Fit, MeasuredKernel
from autopart.records.gpu import Gpu
from autopart.records.kernels import (
    KINDS,
    Kernels,
    kernels_of,
    peak_bandwidth,
    peak_flops,
    with_peaks,
)
from autopart.records.known_gpus import GPUS, find_gpu
from autopart.runtime.models.precision import dtype_of
from autopart.runtime.probing.kernel_operations import (
    CALL,
    GRADIENT,
    STEP,
    Operation,
    costs_of,
)
from autopart.text import counted

_FOLDS = 5


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
    device = MeasuredDevice(gpu, dtype)
    rows = _rows(measured, device)
    table = _with_launches(kernels_of(gpu, target), measured, gpu)
    kernels = fitted_kernels(rows, table, device, DEPTHS)
    errors = row_errors(rows, kernels, device)
    held_out = np.zeros(len(rows))
    for fold in range(_FOLDS):
        left = [row for place, row in enumerate(rows) if place % _FOLDS != fold]
        fitted = fitted_kernels(left, table, device, (kernels.depth,))
        held_out[fold::_FOLDS] = row_errors(rows[fold::_FOLDS], fitted, device)
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


def _rows(measured: Sequence[MeasuredKernel], device: MeasuredDevice) -> list[KernelRow]:
    own = [one for one in measured if one.kind != "launch"]
    if len(own) < rows_needed(1):
        few = counted(len(own), "kernel")
        raise UsageError(f"{few} for a calibration, where {rows_needed(1)} are needed")
    for one in own:
        if not one.seconds > 0.0:
            shape = " x ".join(map(str, one.shape))
            raise UsageError(f"{one.operation} {shape}: measured seconds must be above 0")
    on_cpu, dtype = device.gpu.name == "cpu", dtype_of(device.dtype)
    # A gradient alone starts autograd's engine as well. A step does so once, and a profile leaves it out.
    small = _launch_time(measured, GRADIENT), _launch_time(measured, CALL)
    start = max(0.0, (small[0] or 0.0) - (small[1] or 0.0)) if on_cpu else 0.0
    return [
        KernelRow(
            one,
            costs_of(Operation(one.operation, one.kind, one.shape), dtype, on_cpu),
            start if one.operation.endswith("backward") else 0.0,
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


def _best_rates(
    rows: Sequence[KernelRow], table: Kernels, device: MeasuredDevice
) -> tuple[float, float]:
    """The highest measured operations and bytes per second; the table's where none were measured."""

    def best(kinds: Sequence[str], otherwise: float) -> float:
        own = [row.kernel for row in rows if row.kernel.kind in kinds]
        return max((one.amount / one.seconds for one in own), default=otherwise)

    return (
        best(("products", "attention"), peak_flops(device.gpu, table, device.dtype, device.dtype)),
        best(("memory", "random"), peak_bandwidth(device.gpu, table)),
    )
