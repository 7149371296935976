"""`autopart verify`: check a plan against its profile, or its export against a framework."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.certificate.verify import verify
from autopart.cli.console import print_result
from autopart.cli.shared_options import AsJson, PlanFile
from autopart.errors import UsageError
from autopart.exporters.accelerate import layer_classes
from autopart.exporters.model_units import parse_renaming
from autopart.exporters.readback.check import check_export
from autopart.records.built_in_profiles import profile_files
from autopart.records.files import read_file
from autopart.records.plan import FORMAT, VERSION, Plan, load_plan
from autopart.records.profile import Profile, load_profile
from autopart.report.check_table import check_table
from autopart.report.plan_summary import verify_summary

EXAMPLE = "autopart verify plan.json --profile gpt2-tiny-cpu-mb1.json"

TargetName = Literal["torchtitan", "megatron", "deepspeed", "automodel", "accelerate"]


def command(
    plan: PlanFile,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="The profile that the plan was made from, or its name in 'autopart profiles'; repeat it "
            "for several."
        ),
    ] = None,
    target: Annotated[
        TargetName | None,
        typer.Option(help="An installed framework that reads the plan's export, to compare."),
    ] = None,
    renamings: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="LAYER=UNIT", help="Rename layers, as for 'autopart export'."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a plan against the profile that it was made from, without a solver.

    Each layer is on one stage, values flow forward, memory suffices, the prediction is reproduced, and
    the lower bound is proven again. With --target, the installed framework reads the plan's export;
    its layers, recomputation and orders are compared. Exits with 1 where a check fails.
    """
    profiles = profile or []
    if not profiles and target is None:
        raise UsageError("name something to check against: --profile FILE, or --target FRAMEWORK")
    checks = ()
    given: list[Profile] = []
    if profiles:
        asked = read_file(plan, Plan, FORMAT, VERSION)
        given = [load_profile(p) for one in profiles for p in profile_files(one)]
        checks = verify(asked, given)
    if target is not None:
        named, read = tuple(map(parse_renaming, renamings or ())), load_plan(plan)
        classes = layer_classes(read, given[0]) if given and target == "accelerate" else ()
        checks += check_export(read, target, named, classes)
    named_profiles = ", ".join(map(str, profiles)) or None
    against = " and ".join(name for name in (named_profiles, target) if name is not None)
    summary = verify_summary(checks, str(plan), named_profiles, target)
    print_result(summary, check_table(checks, f"{plan} against {against}"), as_json=as_json)
    if not summary.passed:
        raise typer.Exit(1)
