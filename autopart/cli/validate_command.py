"""`autopart validate`: hold a plan's prediction against a run of it."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import check_may_write, print_result, progress_bar, say
from autopart.cli.options import AsJson, ModelName, PlanFile, Seed, Timeout
from autopart.cli.progress_lines import ProgressLines
from autopart.cli.starting import check_started
from autopart.errors import UsageError
from autopart.fidelity import Fidelity, check_within
from autopart.files import write_file
from autopart.plan import Plan, load_plan, num_ranks
from autopart.report.both_timelines import both_timelines
from autopart.report.fidelity_table import fidelity_report
from autopart.report.trace import FORMAT

EXAMPLE = "autopart validate plan.json zoo:gpt2-tiny --one-device"


def command(
    plan: PlanFile,
    model: ModelName,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps, of which the first does not count.")
    ] = 10,
    local: Annotated[
        bool, typer.Option("--local", help="Start all ranks on this machine, without torchrun.")
    ] = False,
    one_device: Annotated[
        bool,
        typer.Option(
            "--one-device",
            help="Run each rank alone on one device, with stand-ins for its neighbours.",
        ),
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="PERCENT",
            help="Exit with 1 where the step (with --one-device the time of an action) is off by "
            "more, or a rank held so much more than predicted.",
        ),
    ] = None,
    trace_file: Annotated[
        Path | None,
        typer.Option(
            "--trace", metavar="FILE", help="Write both timelines as a Chrome trace, for Perfetto."
        ),
    ] = None,
    optimizer: Annotated[
        Literal["adamw", "sgd-momentum", "sgd"] | None,
        typer.Option(help="Default: the one that the plan's memory is reckoned for."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Default: cuda where there is a GPU for each rank, else cpu."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Compute threads of --one-device, on a CPU.")
    ] = 1,
    timeout: Timeout = 60.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Run a plan with MODEL and print predicted beside measured: each kind of action, bytes at the
    peak, where each rank's step goes, and what makes the difference.

    Ranks are started as by 'autopart run': by torchrun, or here with --local. With --one-device a
    plan for many GPUs is held against one.
    """
    asked = load_plan(plan)
    _check_asked(asked, plan, model, trace_file, local=local, one_device=one_device)
    from autopart.runtime.execution.threads import use_threads
    from autopart.runtime.validation import validate_plan  # and with it torch: seconds

    if one_device:
        use_threads(threads)
    here = local or one_device
    with progress_bar("starting the ranks") if here else nullcontext(ProgressLines()) as progress:
        found = validate_plan(
            asked,
            model,
            steps=steps,
            one_device=one_device,
            optimizer=optimizer,
            device=device,
            timeout=timeout,
            seed=seed,
            report=progress,
        )
    if found is not None:
        trace = None if trace_file is None else both_timelines(asked, found.run)
        _tell(found.fidelity, trace_file, trace, as_json=as_json)
        if tolerance is not None:
            check_within(found.fidelity, tolerance / 100.0)


def _check_asked(
    asked: Plan, path: Path, model: str, trace: Path | None, *, local: bool, one_device: bool
) -> None:
    if trace is not None:
        check_may_write(trace, FORMAT)
    if one_device and local:
        raise UsageError("--one-device runs one rank after the other, --local all: choose one")
    if not one_device:
        check_started("validate", path, num_ranks(asked), model, local=local)


def _tell(found: Fidelity, path: Path | None, trace: bytes | None, *, as_json: bool) -> None:
    if path is not None and trace is not None:
        write_file(path, trace)
    print_result(found, fidelity_report(found), as_json=as_json)
    if path is not None:
        say(f"trace written to {path}")
