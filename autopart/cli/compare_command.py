"""`autopart compare`: plans side by side, or profiles of two revisions of a model."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.shared_options import AsJson, usage_checked
from autopart.errors import UsageError
from autopart.records.built_in_profiles import profile_files
from autopart.records.plan import load_plan
from autopart.records.profile import Profile, load_profile
from autopart.records.profile_changes import layer_seconds
from autopart.report.plan_comparison_table import (
    compare_summary,
    comparison_of_plans,
    difference_lines,
    idle_table,
    profile_changes_summary,
    profile_changes_table,
    sum_line,
)
from autopart.search.plan_comparison import compare_plans
from autopart.text import counted
from autopart.units import parse_share

EXAMPLE = "autopart compare ours.json theirs.json --within 1%"
WORSE = 1
"""The exit code where another plan or profile is faster than the first."""
MOST_PLANS = 16


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Plan files; the first is compared with the others."
        ),
    ],
    profiles: Annotated[
        bool,
        typer.Option("--profiles", help="The files are two profiles; compare them layer by layer."),
    ] = False,
    within: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            parser=usage_checked(parse_share),
            help="How much slower per sample the first one may be, such as 1%.",
        ),
    ] = "0%",  # pyright: ignore[reportArgumentType]
    as_json: AsJson = False,
) -> None:
    """Show plans of one model side by side: stages, step, idle time by cause, memory.

    Exits with 1 where another one is faster per sample than the first, by more than --within.
    """
    names = [str(path) for path in files]
    if profiles:
        best = _compare_profiles(files, within, as_json=as_json)
    else:
        if not 2 <= len(files) <= MOST_PLANS:
            raise UsageError(
                f"{counted(len(files), 'plan')} given; compare takes 2 to {MOST_PLANS}"
            )
        compared = compare_plans([load_plan(path) for path in files])
        best = all((1 + one.slower) * (1 + within) >= 1 for one in compared)
        print_result(
            compare_summary(compared, names, first_is_best=best),
            comparison_of_plans(compared, names),
            idle_table(compared, names),
            *difference_lines(compared, names),
            as_json=as_json,
        )
    if not best:
        raise typer.Exit(WORSE)


def _compare_profiles(files: list[Path], within: float, *, as_json: bool) -> bool:
    """Print two profiles side by side; whether the first one is at least as fast per sample."""
    if len(files) != 2:
        raise UsageError(f"{counted(len(files), 'profile')} given; --profiles takes two")
    first, second = (_profile(path) for path in files)
    best = _seconds(first) <= _seconds(second) * (1 + within)
    print_result(
        profile_changes_summary(first, second, (str(files[0]), str(files[1])), first_is_best=best),
        profile_changes_table(first, second),
        sum_line(first, second),
        as_json=as_json,
    )
    return best


def _profile(path: Path) -> Profile:
    found = profile_files(path)
    if len(found) != 1:
        raise UsageError(
            f"'{path}' names {counted(len(found), 'profile')}; name one, such as {found[0].stem}"
        )
    return load_profile(found[0])


def _seconds(profile: Profile) -> float:
    """Seconds of all layers for one sample."""
    return sum(map(layer_seconds, profile.graph.layers)) / profile.microbatch_size
