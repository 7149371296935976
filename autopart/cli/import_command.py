"""`autopart import`: another planner's profile as a profile file."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result, warn
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import AsJson
from autopart.peers.formats import FORMATS, import_profile
from autopart.records.profile import FORMAT, save_profile
from autopart.report.profile_summary import profile_summary
from autopart.report.profile_table import profile_report

EXAMPLE = "autopart import pipedream graph.txt -o vgg16.json"


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help=f"The file's format: {', '.join(sorted(FORMATS))}."),
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
