"""A calibration on the terminal and as a `--json` document."""

from collections.abc import Sequence

import msgspec
from rich.console import RenderableType

from autopart.records.calibration import Calibration, described, range_of_kernels
from autopart.records.kernels import KINDS, OwnRate, kernels_of, peak_bandwidth, peak_flops
from autopart.records.known_gpus import find_gpu
from autopart.report.columns import add_number, add_text, new_table, plain
from autopart.units import format_share, format_time


class CalibrationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A calibration and the file that it was written to."""

    path: str
    """The file."""
    calibration: Calibration
    """The calibration as the file has it."""
    stretches: dict[str, float]
    """For each fitted kind of kernels its seconds divided by those at the table's share."""


def calibration_report(summary: CalibrationSummary) -> Sequence[RenderableType]:
    """A table of shares, and lines for the fit and its range."""
    own = summary.calibration
    gpu = find_gpu(own.gpu)
    # A CPU's table is shown as shares of the measured peaks, so that both columns have one measure.
    flops = peak_flops(gpu, own.kernels, own.dtype, own.dtype) / gpu.flops.get(own.dtype, 1.0)
    bandwidth = peak_bandwidth(gpu, own.kernels) / gpu.memory_bandwidth
    before = kernels_of(gpu, own.kernels.target).shares
    table = new_table(f"kernels of {own.gpu}, {own.dtype}, as under {own.kernels.target}")
    add_text(table, "kernels")
    add_number(table, "share in\nthe table")
    add_number(table, "measured\nshare")
    for kind in KINDS:
        fitted = own.fit is None or kind in own.fit.kinds
        share = f"{getattr(own.kernels.shares, kind):.1%}" if fitted else "not fitted"
        measure = flops if kind in ("products", "attention") else bandwidth
        table.add_row(kind, f"{getattr(before, kind) / measure:.1%}", share)
    return [table, *(plain(line) for line in _lines(own))]


def _lines(own: Calibration) -> list[str]:
    lines = [f"from {described(own)}"]
    if own.fit is not None:
        fit = own.fit
        lines.append(
            f"errors: on its rows {format_share(fit.mean_error)} in the mean and {format_share(fit.worst_error)} at most, "
            f"on held-out rows {format_share(fit.held_out_error)} and {format_share(fit.held_out_worst)}"
        )
    if own.validity is not None:
        sizes = ", ".join(map(str, own.validity.microbatch_sizes))
        lines.append(
            f"range: models of {own.validity.least_params:,} to {own.validity.most_params:,} parameters, microbatches of {sizes}"
        )
    peaks = own.kernels.peaks
    if peaks is not msgspec.UNSET:
        lines.append(
            f"shares are of measured peak rates: {peaks.flops / 1e9:,.1f} GFLOP/s and {peaks.memory_bandwidth / 1e9:,.1f} GB/s"
        )
    rates = own.kernels.rates
    if rates is not msgspec.UNSET:
        shares = ", ".join(f"{name} {_rate(one)}" for name, one in rates.items())
        lines.append(f"shares of the rate by operation: {shares}")
    single = own.kernels.bandwidths
    if single is not msgspec.UNSET:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in single.items())
        lines.append(f"shares of the bandwidth by operation: {shares}")
    if own.measured:
        for kind, (least, most) in range_of_kernels(own).items():
            unit = "FLOP" if kind in ("products", "attention") else "bytes"
            lines.append(f"range: {kind} of {least:.2g} to {most:.2g} {unit}")
        lines.append(
            f"{format_time(own.kernels.kernel_time)} per kernel, {format_time(own.kernels.host_time)} of the host per operation"
        )
    return lines


def _rate(one: OwnRate) -> str:
    """`60.3% (half at depth 64, 150 µs to start)`."""
    more = [f"half at depth {one.depth}"] if one.depth else []
    more += [f"{format_time(one.start)} to start"] if one.start else []
    return f"{one.share:.1%}" + (f" ({', '.join(more)})" if more else "")
