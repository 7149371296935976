"""`autopart explain`: why a plan is as it is, and what changes would be worth."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result, say
from autopart.cli.shared_options import AsJson, PlanFile, usage_checked
from autopart.records.built_in_profiles import profile_files
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile
from autopart.report.explanation_table import (
    binding_lines,
    explain_summary,
    path_table,
    what_if_table,
)
from autopart.search.explanation import explain_plan
from autopart.search.what_if import FIELDS, Scenario, parse_scenario
from autopart.text import counted

EXAMPLE = "autopart explain plan.json --profile p.json --what-if memory=+8GiB"


def command(
    plan: PlanFile,
    profile: Annotated[
        list[Path],
        typer.Option(
            help="The profile that the plan was made from, or its name in 'autopart profiles'; repeat it "
            "for several."
        ),
    ],
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Changes to solve again with, in place of the usual ones; repeat it for several. "
            f"VALUE is 2x, +10%, +8GiB or a new value. NAME: {', '.join(FIELDS)}.",
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.0, help="Seconds for all searches together.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Say why a plan is as it is: its critical path, what binds it, and what each change would be worth.

    Every worth is the difference to a plan that is solved again, per sample where the batch changes.
    """
    scenarios: list[Scenario] = [usage_checked(parse_scenario)(text) for text in what_if or ()]
    asked = load_plan(plan)
    profiles = [load_profile(path) for one in profile for path in profile_files(one)]
    found = explain_plan(asked, profiles, scenarios, time_limit=time_limit)
    if found.left_out:
        say(
            f"warning: {counted(found.left_out, 'change was', 'changes were')} left out; raise --time-limit"
        )
    print_result(
        explain_summary(found, str(plan)),
        path_table(found),
        *binding_lines(found),
        what_if_table(found),
        as_json=as_json,
    )
