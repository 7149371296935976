"""`autopart doctor`: what is installed, what works, and what would be taken."""

from collections.abc import Iterator
from pathlib import Path

import typer

from autopart.cli.console import print_result
from autopart.cli.shared_options import AsJson
from autopart.errors import AutopartError
from autopart.records.built_in_profiles import built_in_profiles
from autopart.records.plan import load_plan
from autopart.records.profile import Profile, load_profile, newest_profile, profile_hash
from autopart.report.doctor_table import DoctorSummary, FindingSummary, doctor_table
from autopart.text import counted

EXAMPLE = "autopart doctor --json"
PLAN = "plan.json"
"""The plan that `solve` writes and that other commands name first."""


def command(as_json: AsJson = False) -> None:
    """Say what is installed, whether ranks can start, and which profile and plan would be taken here.

    Exits with 1 where something is broken, so that plans cannot run.
    """
    from autopart.runtime.installation import machine_findings

    findings = [FindingSummary(**one._asdict()) for one in machine_findings()]
    findings += folder_findings(Path.cwd())
    works = all(one.state != "broken" for one in findings)
    print_result(
        DoctorSummary(works=works, findings=tuple(findings)),
        doctor_table(findings),
        as_json=as_json,
    )
    if not works:
        raise typer.Exit(1)


def folder_findings(folder: Path) -> Iterator[FindingSummary]:
    """The profile and the plan in a folder that the commands would take."""
    profile: Profile | None = None
    try:
        newest = newest_profile(folder).path
        profile = load_profile(newest)
        layers = counted(len(profile.graph.layers), "layer")
        yield _finding("profile", "ok", f"{newest.name}: {profile.source.model}, {layers}")
    except AutopartError as error:
        yield _finding(
            "profile",
            "note",
            str(error).partition("; ")[0],
            f"make one with 'autopart profile model.py', or take one of {len(built_in_profiles())} built-in ones",
        )
    path = folder / PLAN
    if not path.exists():
        yield _finding("plan", "note", f"no {PLAN} here", "make one with 'autopart solve --gpus N'")
        return
    try:
        plan = load_plan(path)
    except AutopartError as error:
        found, _, advice = str(error).partition("; ")
        yield _finding("plan", "note", found, advice)
        return
    about = f"{PLAN}: {plan.origin.model}, {counted(len(plan.stages), 'stage')}"
    if profile is None or plan.origin.profile_hash == profile_hash(profile):
        yield _finding("plan", "ok", about)
    else:
        yield _finding(
            "plan",
            "note",
            f"{about}; it was made from another profile than the newest",
            "name its own with --profile",
        )


def _finding(subject: str, state: str, found: str, advice: str = "") -> FindingSummary:
    return FindingSummary(subject=subject, state=state, found=found, advice=advice)
