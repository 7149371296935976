"""`autopart verify`: check a plan against its profile, without a solver."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.certificate import verify
from autopart.cli.console import print_result
from autopart.cli.options import AsJson, PlanFile
from autopart.files import read_file
from autopart.plan import FORMAT, VERSION, Plan
from autopart.profile import load_profile
from autopart.report.step_table import check_table
from autopart.report.summary import verify_summary

EXAMPLE = "autopart verify plan.json --profile gpt2-tiny-cpu-mb1.json"


def command(
    plan: PlanFile,
    profile: Annotated[
        list[Path],
        typer.Option(help="The profile that the plan was made from, or each of them."),
    ],
    as_json: AsJson = False,
) -> None:
    """Check a plan against the profile that it was made from.

    Each layer once, edges forward, memory kept, the prediction reproduced, the bound proved again;
    no solver is asked. Exits with 1 where a check fails.
    """
    asked = read_file(plan, Plan, FORMAT, VERSION)
    checks = verify(asked, [load_profile(path) for path in profile])
    summary = verify_summary(checks, str(plan), ", ".join(map(str, profile)))
    title = f"{plan} against {summary.profile}"
    print_result(summary, check_table(checks, title), as_json=as_json)
    if not summary.passed:
        raise typer.Exit(1)
