"""`autopart calibrate`: measured shares for the kernels of an analytic profile."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autopart.cli.console import print_result
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import AsJson
from autopart.errors import UsageError
from autopart.records.calibration import FORMAT, Calibration, check_calibration, save_calibration
from autopart.records.kernels import TARGETS, kernels_of
from autopart.records.known_gpus import find_gpu
from autopart.records.profile import load_profile
from autopart.report.calibration_table import CalibrationSummary, calibration_report

if TYPE_CHECKING:
    from autopart.calibration.fit import Stretches

EXAMPLE = "autopart calibrate from-steps runs.csv --gpu a100-sxm-80gb"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredOptions:
    """What was measured, and the kinds of kernels that are fitted to it."""

    gpu: Annotated[
        str | None,
        typer.Option(help="The known GPU that was measured; default: the profile's device."),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="The dtype of the runs; a profile has its own."),
    ] = "bfloat16"
    target: Annotated[str, typer.Option(help=f"The framework that ran: {', '.join(TARGETS)}.")] = (
        "torch"
    )
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The known cluster of runs on several nodes, for its network."
        ),
    ] = None
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Fit these kinds of kernels, such as products,memory; default: as many as the rows allow.",
        ),
    ] = None


@with_groups
def command(
    *,
    source: Annotated[
        Literal["from-steps", "from-profile"],
        typer.Argument(
            metavar="SOURCE",
            help="'from-steps': a CSV file of runs with columns model, gpus, batch and seconds, and nodes, tensor, "
            "pipeline, microbatch, schedule, recompute where they differ from 1f1b on one stage. "
            "'from-profile': a measured profile.",
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The runs, or the profile.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The calibration file to write.")
    ] = Path("calibration.json"),
    measured: MeasuredOptions,
    as_json: AsJson = False,
) -> None:
    """Fit the shares of kernels to steps of runs, or to a measured profile, and write a calibration.

    'autopart profile --device meta --calibrate FILE' uses it. The fit, its error on held-out rows and its range are in the
    file. One kind of kernels needs three rows, and each further kind two more.
    """
    check_may_write(output, FORMAT)
    made, fitted = _fitted(source, file, measured)
    check_calibration(made, find_gpu(made.gpu))
    save_calibration(made, output)
    summary = CalibrationSummary(path=str(output), calibration=made, stretches=fitted.stretches)
    lines = calibration_report(summary)
    print_result(summary, *lines, f"calibration written to {output}", as_json=as_json)


def _fitted(source: str, file: Path, measured: MeasuredOptions) -> "tuple[Calibration, Stretches]":
    kinds = () if measured.kinds is None else tuple(measured.kinds.split(","))
    if source == "from-profile":
        profile = load_profile(file)
        from autopart.calibration.from_profile import calibrate_from_profile

        return calibrate_from_profile(
            profile, file.name, gpu=measured.gpu, target=measured.target, kinds=kinds
        )
    if measured.gpu is None:
        raise UsageError("from-steps needs the GPU of the runs: name it with --gpu")
    kernels_of(find_gpu(measured.gpu), measured.target)
    from autopart.calibration.from_steps import calibrate_from_steps, read_runs

    device = (measured.gpu, measured.dtype, measured.target)
    return calibrate_from_steps(
        read_runs(file), file.name, device, preset=measured.cluster, kinds=kinds
    )
