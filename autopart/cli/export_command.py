"""`autopart export`: a plan in the words of another framework."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import check_may_replace, print_result, results_console, warn
from autopart.cli.options import AsJson
from autopart.errors import UsageError
from autopart.exporters import export_plan, parse_renaming
from autopart.files import write_file
from autopart.plan import load_plan
from autopart.report.summary import ExportSummary
from autopart.report.target_table import target_table

EXAMPLE = "autopart export plan.json --to torch -o exported"

TargetName = Literal[
    "torch", "torchtitan", "megatron", "deepspeed", "automodel", "primus", "vllm", "device-map"
]


def command(
    plan: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN]", help="A plan file, as 'autopart solve' writes it."),
    ] = None,
    target: Annotated[TargetName | None, typer.Option("--to", help="The framework.")] = None,
    target_version: Annotated[
        str | None, typer.Option(help="The framework's version, of those that --list shows.")
    ] = None,
    renamings: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="LAYER=UNIT", help="transformer.h.{i}=layers.{i}"),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the files.")
    ] = Path("exported"),
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the frameworks and what each can be told.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a plan as code or settings that need no autopart."""
    if show_list:
        results_console(as_json=as_json).print(target_table())
        return
    if plan is None or target is None:
        raise UsageError("name a plan and a framework: autopart export plan.json --to torch")
    named = tuple(map(parse_renaming, renamings or ()))
    made = export_plan(load_plan(plan), target, version=target_version, renamings=named)
    files = {output / name: text for name, text in made.files.items()}
    for path, text in files.items():
        check_may_replace(path, text)
    for path, text in files.items():
        write_file(path, text.encode())
    summary = ExportSummary(
        plan=str(plan), target=target, files=tuple(map(str, files)), notes=made.notes
    )
    warn(made.notes)
    print_result(summary, *(f"written: {path}" for path in files), as_json=as_json)
