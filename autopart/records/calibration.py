"""A calibration: measured shares for the kernels of one GPU in one dtype, and its file.

It comes from steps of runs (`autopart calibrate from-steps`), from a measured profile (`autopart calibrate
from-profile`), from single kernels (`autopart probe --kernels`), or from a user's hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.errors import ClusterError
from autopart.records.files import read_file, write_record
from autopart.records.gpu import Gpu
from autopart.records.kernels import KINDS, Kernels, peak_bandwidth, peak_flops
from autopart.records.pace import Pace
from autopart.text import counted
from autopart.units import MOST_AMOUNT, Count, PositiveCount, Seconds, format_share

FORMAT = "autopart-calibration"
VERSION = 1
Error = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
BEYOND = 1.02
"""A measured rate may pass the datasheet's by so much: clocks and timers are not exact."""
FAR_BEYOND = 4.0
"""A kernel with more than so many times the largest measured one's work is out of range."""


class Fit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well the shares explain the rows that they were fitted to. Errors are relative, as shares."""

    rows: Count
    """Measured rows."""
    kinds: tuple[str, ...]
    """The kinds of kernels whose shares were fitted; the others stand in the table for the GPU."""
    mean_error: Error
    """Mean error on the rows, without sign."""
    worst_error: Error
    """Largest error on the rows, without sign."""
    held_out_error: Error
    """Mean error on rows that were left out of the fit, one group at a time."""
    held_out_worst: Error
    """Largest error on rows that were left out of the fit."""


class Validity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models behind the rows. A profile outside of the range says so."""

    least_params: PositiveCount
    """Parameters of the smallest model."""
    most_params: PositiveCount
    """Parameters of the largest model."""
    microbatch_sizes: tuple[PositiveCount, ...]
    """Samples per microbatch, at least one size, the smallest first."""

    def __post_init__(self) -> None:
        if not self.microbatch_sizes or list(self.microbatch_sizes) != sorted(
            self.microbatch_sizes
        ):
            raise ValueError(
                "microbatch_sizes has at least one size, and the smallest stands first"
            )
        if self.least_params > self.most_params:
            raise ValueError("least_params is above most_params")


class MeasuredKernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured kernel."""

    kind: Literal["products", "attention", "memory", "random", "launch"]
    """The kind of kernel; "launch" is an operation with nothing to do."""
    operation: str = ""
    """The operation, such as `layer_norm backward`; empty in a table typed by hand."""
    shape: tuple[PositiveCount, ...]
    """Product: rows, columns, depth; batched: their number first. Convolution: samples, channels, side. Attention: heads, length,
    width. Others: rows, columns."""
    amount: Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
    """Floating-point operations, or moved bytes of memory and random kernels."""
    seconds: Seconds
    """Median seconds of one call."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured shares for the kernels of one GPU, with their error and their range."""

    format: Literal["autopart-calibration"] = FORMAT
    version: Literal[1] = VERSION
    gpu: str
    """The known GPU, or "cpu"."""
    dtype: str
    """The dtype of the measured runs."""
    kernels: Kernels
    """The kernel model with the measured shares."""
    source: Literal["steps", "profile", "kernels", "hand"]
    """What was measured: steps, a profile's layers, single kernels, or figures typed by hand."""
    made_from: str = ""
    """The file or device behind the rows."""
    fit: Fit | None = None
    """The errors of the fit; null without one."""
    validity: Validity | None = None
    """The models behind the rows; null for single kernels, whose range is that of `measured`."""
    measured: tuple[MeasuredKernel, ...] = ()
    """The measured kernels, for a calibration from single kernels."""
    pace: Pace | msgspec.UnsetType = msgspec.UNSET
    """The machine's pace between the kernels; absent where it was not measured."""
    created: str = ""
    """Time of creation (ISO 8601, UTC)."""


def load_calibration(path: Path | str) -> Calibration:
    """Read a calibration file; raises FileError. `check_calibration` looks at its rates."""
    return read_file(Path(path), Calibration, FORMAT, VERSION)


def save_calibration(calibration: Calibration, path: Path | str) -> None:
    """Write a calibration file, whole or not at all."""
    write_record(Path(path), calibration, FORMAT, VERSION)


def check_calibration(calibration: Calibration, gpu: Gpu) -> None:
    """Raise ClusterError where the calibration is another GPU's, or has rates that this GPU cannot have."""
    if calibration.gpu != gpu.name:
        raise ClusterError(
            f"the calibration is for {calibration.gpu}, not for {gpu.name}; calibrate anew, or use --gpu {calibration.gpu}"
        )
    for kind in KINDS:
        share = getattr(calibration.kernels.shares, kind)
        if not 0.0 < share <= 1.0:
            raise ClusterError(
                f"the calibration has {kind} at {format_share(share)} of the peak rate; a share is above 0 to 100 %"
            )
    for one in calibration.measured:
        _check_rate(one, calibration.kernels, calibration.dtype, gpu)


def check_dtype(calibration: Calibration, dtype: str) -> None:
    """Raise ClusterError where the calibration is for another dtype."""
    if calibration.dtype != dtype:
        raise ClusterError(
            f"the calibration is for {calibration.dtype}, and the model has {dtype}; give --dtype {calibration.dtype}, or calibrate anew"
        )


_ROW_WORDS = {"steps": "step", "kernels": "kernel"}


def calibrated_kernels(calibration: Calibration) -> Kernels:
    """The kernels with the calibration named in words."""
    return msgspec.structs.replace(calibration.kernels, calibration=described(calibration))


def described(calibration: Calibration) -> str:
    """`runs.csv (24 steps, 3.1 % off on held-out rows)`."""
    name = calibration.made_from or "figures typed by hand"
    fit = calibration.fit
    if fit is None:
        few = counted(len(calibration.measured), "kernel")
        return f"{name} ({few})" if calibration.measured else name
    rows = counted(fit.rows, _ROW_WORDS.get(calibration.source, "row"))
    return f"{name} ({rows}, {format_share(fit.held_out_error)} off on held-out rows)"


def notes_on_range(
    calibration: Calibration, num_params: int, microbatch_size: int
) -> tuple[str, ...]:
    """What a model has that no measured row had, in words."""
    own = calibration.validity
    if own is None:
        return ()
    notes: list[str] = []
    if not own.least_params <= num_params <= own.most_params:
        notes.append(
            f"the calibration covers models of {own.least_params:,} to {own.most_params:,} parameters, and this one has {num_params:,}"
        )
    least, most = own.microbatch_sizes[0], own.microbatch_sizes[-1]
    if not least <= microbatch_size <= most:
        sizes = str(least) if least == most else f"{least} to {most}"
        notes.append(
            f"the calibration covers microbatches of {sizes}, and this profile has {microbatch_size}"
        )
    return tuple(notes)


def range_of_kernels(calibration: Calibration) -> dict[str, tuple[float, float]]:
    """For each kind of measured kernels the least and the most work: operations, or bytes."""
    found: dict[str, tuple[float, float]] = {}
    for one in calibration.measured:
        if one.kind != "launch":
            least, most = found.get(one.kind, (one.amount, one.amount))
            found[one.kind] = min(least, one.amount), max(most, one.amount)
    return found


def notes_on_kernels(calibration: Calibration, largest: Mapping[str, float]) -> tuple[str, ...]:
    """Kernels of a model far beyond the measured ones, in words; `largest` has the most work of each kind."""
    notes: list[str] = []
    for kind, (_, most) in range_of_kernels(calibration).items():
        own = largest.get(kind, 0.0)
        if own > FAR_BEYOND * most:
            unit = "FLOP" if kind in ("products", "attention") else "bytes"
            notes.append(
                f"the calibration covers {kind} of up to {most:.2g} {unit}, and this model has one of {own:.2g}"
            )
    return tuple(notes)


def _check_rate(one: MeasuredKernel, kernels: Kernels, dtype: str, gpu: Gpu) -> None:
    if one.kind == "launch":
        return
    shape = " x ".join(map(str, one.shape))
    if one.seconds <= 0.0 or one.amount <= 0.0:
        raise ClusterError(
            f"the calibration has no rate for {one.kind} {shape}: it must be above 0"
        )
    # A CPU's table is an order of magnitude and no datasheet: only measured peaks limit its rates.
    if dtype not in gpu.flops or (gpu.name == "cpu" and kernels.peaks is msgspec.UNSET):
        return
    streams = one.kind in ("memory", "random")
    peak = peak_bandwidth(gpu, kernels) if streams else peak_flops(gpu, kernels, dtype, dtype)
    if one.amount / one.seconds > BEYOND * peak:
        raise ClusterError(
            f"the calibration has {one.kind} {shape} at {format_share(one.amount / one.seconds / peak)} of the peak rate of {gpu.name}"
        )
