"""Options and arguments that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from autopart.errors import AutopartError

T = TypeVar("T")

MOST_THREADS = 4096
"""Most compute threads of a rank."""

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as one JSON document on stdout, everything else on stderr."
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="model.py, path.py:function, package.module:function, or a built-in zoo:NAME.",
    ),
]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan file, as 'autopart solve' writes it.")
]


def usage_checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` with its AutopartError turned into wrong usage; the message names the option."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except AutopartError as error:
            raise typer.BadParameter(str(error)) from None

    return parsed
