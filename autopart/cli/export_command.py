"""`autopart export`: a plan in the words of another framework."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import check_may_replace, print_result
from autopart.cli.options import AsJson, PlanFile
from autopart.exporters import export_plan
from autopart.files import write_file
from autopart.plan import load_plan
from autopart.report.summary import ExportSummary

EXAMPLE = "autopart export plan.json --to torch -o exported"


def command(
    plan: PlanFile,
    target: Annotated[Literal["torch"], typer.Option("--to", help="The framework.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the files.")
    ] = Path("exported"),
    as_json: AsJson = False,
) -> None:
    """Write a plan as code that runs without autopart."""
    files = {output / name: text for name, text in export_plan(load_plan(plan), target).items()}
    for path, text in files.items():
        check_may_replace(path, text)
    for path, text in files.items():
        write_file(path, text.encode())
    summary = ExportSummary(plan=str(plan), target=target, files=tuple(map(str, files)))
    print_result(summary, *(f"written: {path}" for path in files), as_json=as_json)
