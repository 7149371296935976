"""`autopart validate`: compare a plan's prediction with a run."""

from contextlib import nullcontext
from pathlib import Path

from autopart.cli.console import print_result, progress_bar, say, stdout_for_json
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.progress_lines import ProgressLines
from autopart.cli.run_options import ComparisonOptions, ComputeOptions, RankOptions
from autopart.cli.shared_options import AsJson, ModelName, PlanFile
from autopart.cli.torchrun_check import check_started
from autopart.errors import UsageError
from autopart.fidelity.compare import Fidelity, check_within
from autopart.records.files import write_file
from autopart.records.plan import Plan, load_plan
from autopart.records.plan_degrees import num_processes
from autopart.report.both_timelines import both_timelines
from autopart.report.fidelity_table import fidelity_report
from autopart.report.trace import FORMAT

EXAMPLE = "autopart validate plan.json zoo:gpt2-tiny --one-device"


@with_groups
def command(
    *,
    plan: PlanFile,
    model: ModelName,
    comparison_options: ComparisonOptions,
    compute_options: ComputeOptions,
    rank_options: RankOptions,
    as_json: AsJson = False,
) -> None:
    """Run a plan with MODEL and compare prediction with measurement.

    Prints both for each kind of action, for peak memory, and for the parts of each rank's step, with
    the causes of the difference.

    Ranks are started as by 'autopart run': by torchrun, or here with --local. With --one-device, one
    device is enough to check a plan for many GPUs.
    """
    asked, one_device = load_plan(plan), comparison_options.one_device
    _check_asked(asked, plan, model, comparison_options)
    from autopart.runtime.measuring.threads import use_threads
    from autopart.runtime.validation import validate_plan  # imports torch, which takes seconds

    if one_device:
        use_threads(compute_options.threads)
    here = comparison_options.local or one_device
    bar = progress_bar("starting the ranks") if here else nullcontext(ProgressLines())
    with stdout_for_json(as_json=as_json), bar as progress:
        found = validate_plan(
            asked,
            model,
            steps=comparison_options.steps,
            one_device=one_device,
            optimizer=compute_options.optimizer,
            device=compute_options.device,
            timeout=rank_options.timeout,
            seed=rank_options.seed,
            report=progress,
        )
    if found is not None:
        trace_file, tolerance = comparison_options.trace_file, comparison_options.tolerance
        trace = None if trace_file is None else both_timelines(found.plan, found.run)
        _tell(found.fidelity, trace_file, trace, as_json=as_json)
        if tolerance is not None:
            check_within(found.fidelity, tolerance / 100.0)


def _check_asked(asked: Plan, path: Path, model: str, options: ComparisonOptions) -> None:
    if options.trace_file is not None:
        check_may_write(options.trace_file, FORMAT)
    if options.one_device and options.local:
        raise UsageError(
            "--one-device runs one rank after the other, --local all together: choose one"
        )
    if not options.one_device:
        check_started("validate", path, num_processes(asked), model, local=options.local)


def _tell(found: Fidelity, path: Path | None, trace: bytes | None, *, as_json: bool) -> None:
    if path is not None and trace is not None:
        write_file(path, trace)
    print_result(found, fidelity_report(found), as_json=as_json)
    if path is not None:
        say(f"trace written to {path}")
