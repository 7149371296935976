"""`autopart probe`: measure a machine or cluster for the cost model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import typer

from autopart.cli.console import print_result, warn
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import MOST_THREADS, AsJson
from autopart.cost.probe_comparison import compare_network, notes_on_comparisons
from autopart.cost.probed_cluster import cluster_of_probe, notes_on_probe
from autopart.errors import UsageError
from autopart.records.calibration import FORMAT as CALIBRATION_FORMAT
from autopart.records.calibration import Calibration, check_calibration, save_calibration
from autopart.records.cluster import FORMAT, save_cluster
from autopart.records.kernels import TARGETS, kernels_of
from autopart.records.known_gpus import find_gpu
from autopart.records.probe import Probe, ProbeSummary
from autopart.report.calibration_table import CalibrationSummary, calibration_report
from autopart.report.probe_table import probe_report

MOST_LIMIT = 86400.0
"""Most seconds for the network: a day."""

EXAMPLE = "autopart probe --ranks 2 -o cluster.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitOptions:
    """What is measured between ranks, and for how long."""

    timeout: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="Seconds for one wait on another rank; without the network the whole probe may take ten times as long.",
        ),
    ] = 60.0
    network: Annotated[
        bool | None,
        typer.Option(
            "--network/--no-network",
            help="Measure rails, rings and collectives between all ranks; default: where there are several nodes.",
            show_default=False,
        ),
    ] = None
    limit: Annotated[
        float,
        typer.Option(
            min=1.0,
            max=MOST_LIMIT,
            help="Seconds for the network, or for kernels; the largest ones are left out where it is short.",
        ),
    ] = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelOptions:
    """Single kernels on one device."""

    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Time single kernels on one device, and write a calibration for 'autopart profile --calibrate'.",
        ),
    ] = False
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="With --kernels: their dtype; default: float32 on a CPU, else bfloat16."),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(help="With --kernels: the known GPU; default: by the device's name."),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            help=f"With --kernels: the framework that will run: {', '.join(TARGETS)}; default: torch."
        ),
    ] = None


@with_groups
def command(
    *,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Number of ranks to start on this machine, without torchrun."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file to write; default: cluster.json, or calibration.json with --kernels.",
        ),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(
            help="Device of the ranks; default: cuda where each rank has its own GPU, else cpu."
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Compute threads per rank, on a CPU.")
    ] = 1,
    limits: LimitOptions,
    of_kernels: KernelOptions,
    as_json: AsJson = False,
) -> None:
    """Measure links, all-reduces and copies to the host between real ranks; or, with --kernels, single kernels.

    It also measures compute beside busy neighbours, and the fixed cost of an action. On several
    nodes it measures collectives between all ranks too, and fits the network record. The result is
    the cluster file that 'autopart solve --cluster' reads.

    Start it with torchrun on all nodes, as the training will be, or with --ranks on one machine.
    Nothing else should run meanwhile.

    With --kernels one device times products, attention, streaming operations and launches. The result is the
    calibration that 'autopart profile --device meta --calibrate' reads.
    """
    if of_kernels.kernels:
        _check_alone(ranks, limits)
        path = output or Path("calibration.json")
        check_may_write(path, CALIBRATION_FORMAT)
        made = _calibrated(device, threads, limits.limit, of_kernels)
        save_calibration(made.calibration, path)
        summary = CalibrationSummary(
            path=str(path), calibration=made.calibration, stretches=made.stretches
        )
        lines = calibration_report(summary)
        print_result(summary, *lines, f"calibration written to {path}", as_json=as_json)
        return
    for option in ("dtype", "gpu", "target"):
        if getattr(of_kernels, option) is not None:
            raise UsageError(f"--{option} goes with --kernels; between ranks it has no meaning")
    _probe_ranks(ranks, device, threads, limits, output or Path("cluster.json"), as_json)


def _probe_ranks(
    ranks: int | None,
    device: str | None,
    threads: int,
    limits: LimitOptions,
    output: Path,
    as_json: bool,
) -> None:
    check_may_write(output, FORMAT)
    from autopart.runtime.probing.probe import probe_cluster  # imports torch, which takes seconds

    probe = probe_cluster(
        num_ranks=ranks,
        device=device,
        threads=threads,
        timeout=limits.timeout,
        network=limits.network,
        limit=limits.limit,
    )
    if probe is None:
        return
    summary = _summary(probe, output)
    save_cluster(summary.cluster, output)
    warn(summary.notes)
    print_result(summary, *probe_report(summary), f"cluster written to {output}", as_json=as_json)


class Calibrated(NamedTuple):
    """A calibration, and what it changed in the table."""

    calibration: Calibration
    stretches: dict[str, float]


def _check_alone(ranks: int | None, limits: LimitOptions) -> None:
    """Raise UsageError for options about several ranks."""
    if ranks is not None or limits.network is not None:
        option = "--ranks" if ranks is not None else "--network"
        raise UsageError(f"--kernels times one device; drop {option}, or --kernels")


def _calibrated(device: str | None, threads: int, limit: float, asked: KernelOptions) -> Calibrated:
    """Time the kernels and fit their shares. Names that are not known are refused before anything is timed."""
    target = asked.target or "torch"
    kernels_of(find_gpu(asked.gpu or "cpu"), target)
    from autopart.calibration.from_kernels import calibrate_from_kernels, known_gpu
    from autopart.runtime.probing.kernels import chosen_device, measure_kernels

    kind, name = chosen_device(device)
    gpu = known_gpu(kind, name, asked.gpu)
    dtype = asked.dtype or ("float32" if kind == "cpu" else "bfloat16")
    measured, pace = measure_kernels(kind, dtype, threads, limit)
    made, fitted = calibrate_from_kernels(measured, f"kernels on {name}", gpu, dtype, target)
    made = msgspec.structs.replace(made, pace=pace or msgspec.UNSET)
    check_calibration(made, gpu)
    return Calibrated(made, fitted.stretches)


def _summary(probe: Probe, output: Path) -> ProbeSummary:
    cluster = cluster_of_probe(probe)
    compared = () if probe.network is None else compare_network(cluster, probe.network)
    notes = (*notes_on_probe(probe), *notes_on_comparisons(compared))
    return ProbeSummary(
        path=str(output), cluster=cluster, probe=probe, comparisons=compared, notes=notes
    )
