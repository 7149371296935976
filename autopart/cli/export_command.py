"""`autopart export`: a plan as code or settings for another framework."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
import typer

from autopart.cli.console import print_result, progress_bar, results_console, warn
from autopart.cli.export_options import CheckOptions, TargetOptions
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_replace
from autopart.cli.shared_options import AsJson
from autopart.errors import UsageError
from autopart.exporters.accelerate import layer_classes
from autopart.exporters.model_units import parse_renaming
from autopart.exporters.targets import export_plan
from autopart.exporters.torch.self_check import check_export
from autopart.records.built_in_profiles import profile_files
from autopart.records.files import write_file
from autopart.records.frameworks import FRAMEWORKS
from autopart.records.plan import Plan, load_plan
from autopart.records.profile import load_profile
from autopart.report.plan_summary import ExportSummary
from autopart.report.target_table import communication_table, target_table
from autopart.simulator.timeline import simulate_plan
from autopart.units import format_time

EXAMPLE = "autopart export plan.json --to torch -o exported"

NOTED = 0.01
"""A step that other sends change by a smaller share is not noted."""


@with_groups
def command(
    *,
    plan: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN]", help="A plan file, as 'autopart solve' writes it."),
    ] = None,
    target_options: TargetOptions,
    check_options: CheckOptions,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the frameworks and the settings that each accepts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a plan as code or settings that need no autopart.

    Exits with 1 where --check finds a difference between the written files and the plain model.
    """
    if show_list:
        _show_frameworks(as_json=as_json)
        return
    target, output = target_options.target, target_options.output
    if plan is None or target is None:
        raise UsageError("name a plan and a framework: autopart export plan.json --to torch")
    if check_options.check and target != "torch":
        raise UsageError(
            "--check is for --to torch; autopart verify PLAN --target checks other exports"
        )
    named, asked = tuple(map(parse_renaming, target_options.renamings or ())), load_plan(plan)
    made = export_plan(
        asked,
        target,
        version=target_options.target_version,
        renamings=named,
        classes=_classes(target_options, asked),
    )
    files = {output / name: text for name, text in made.files.items()}
    for path, text in files.items():
        check_may_replace(path, text)
    for path, text in files.items():
        write_file(path, text.encode())
    warn(notes := (*made.notes, *_notes_on_sends(asked, target)))
    said = _checked(output, check_options, asked)
    summary = ExportSummary(
        plan=str(plan),
        target=target,
        files=tuple(map(str, files)),
        notes=notes,
        check=said,
    )
    lines = [f"written: {path}" for path in files] + ([] if said is None else [said])
    print_result(summary, *lines, as_json=as_json)


def _classes(options: TargetOptions, plan: Plan) -> tuple[str, ...]:
    """The classes of the plan's layers, where its profile is given."""
    if options.profile is None:
        return ()
    if options.target != "accelerate":
        raise UsageError("--profile is for --to accelerate; other targets take none")
    return layer_classes(plan, load_profile(profile_files(options.profile)[0]))


def _show_frameworks(*, as_json: bool) -> None:
    console = results_console(as_json=as_json)
    console.print(target_table())
    console.print(communication_table())


def _notes_on_sends(plan: Plan, target: str) -> list[str]:
    """A note where sends that wait for their receiver would make the plan's step longer."""
    cluster, framework = plan.cluster, FRAMEWORKS[target]
    if cluster.sends == framework.sends or not cluster.sends_overlap:
        return []
    waiting = msgspec.structs.replace(cluster, sends=framework.sends)
    step = simulate_plan(msgspec.structs.replace(plan, cluster=waiting)).makespan
    said = plan.prediction.step_time
    if abs(step - said) <= NOTED * said:
        return []
    return [
        f"sends are {framework.sends} in {framework.title}: the step then takes {format_time(step)} in place of "
        f"{format_time(said)}; solve with --target {target} to plan for that"
    ]


def _checked(output: Path, options: CheckOptions, plan: Plan) -> str | None:
    """The sentence of the exported check; None where none is asked for."""
    if not options.check:
        return None
    # The exported check reads model files only, and this one passes autopart's own reading on.
    text = (
        "from autopart.runtime.models.model_file import load_model\n"
        f"found = load_model({options.model or plan.origin.model!r})\n"
        "build_model, example_inputs = found.build_model, found.example_inputs\n"
        "example_target, loss_fn = found.example_target, found.loss_fn\n"
    )
    with TemporaryDirectory(prefix="autopart-check-") as folder:
        file = Path(folder) / "model.py"
        file.write_text(text, encoding="utf-8")
        with progress_bar("comparing one step with the plain model"):
            return check_export(output / "pipeline.py", file)
