"""`autopart import`: a profile of another planner in our words."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import check_may_write, print_result, warn
from autopart.cli.options import AsJson
from autopart.importers import FORMATS, import_profile
from autopart.profile import FORMAT, save_profile
from autopart.report.profile_table import profile_report
from autopart.report.summary import profile_summary

EXAMPLE = "autopart import pipedream graph.txt -o vgg16.json"


def command(
    name: Annotated[
        str, typer.Argument(metavar="FORMAT", help=f"One of: {', '.join(sorted(FORMATS))}.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other planner's file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile to write.")] = Path(
        "profile.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Read another planner's FILE and write it as a profile."""
    check_may_write(output, FORMAT)
    profile = import_profile(name, file)
    save_profile(profile, output)
    warn(profile.warnings)
    print_result(
        profile_summary(profile, str(output)),
        profile_report(profile),
        f"profile written to {output}",
        as_json=as_json,
    )
