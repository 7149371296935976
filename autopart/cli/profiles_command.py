"""`autopart profiles`: the profiles that `--profile` knows by name."""

from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.shared_options import AsJson
from autopart.errors import ProfileError
from autopart.records.built_in_profiles import built_in_profiles, find_built_in
from autopart.records.profile import load_profile
from autopart.report.profile_list import ProfileList, listed_profile, profile_list_table

EXAMPLE = "autopart profiles llama-8b-h100"


def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One of them, or its first words; default: all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the built-in profiles, which 'autopart solve --profile NAME' finds by name.

    They let you plan before you have a GPU. With a name it lists their files.
    """
    shown = built_in_profiles() if name is None else (find_built_in(name),)
    if not shown:
        raise ProfileError(
            "this installation has no built-in profiles; make one with 'autopart profile MODEL'"
        )
    listed = ProfileList(
        profiles=tuple(
            listed_profile(
                one.name,
                tuple(map(str, one.paths.values())),
                [load_profile(path) for path in one.paths.values()],
            )
            for one in shown
        )
    )
    lines = ["plan with one: autopart solve --profile NAME --gpus 8 --nodes 2"]
    if name is not None:
        lines = [*listed.profiles[0].files]
    print_result(listed, profile_list_table(listed), *lines, as_json=as_json)
