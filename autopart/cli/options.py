"""Options and arguments that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from autopart.errors import AutopartError

T = TypeVar("T")

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as one JSON document on stdout, all else on stderr."
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

Timeout = Annotated[
    float, typer.Option(min=1.0, help="Seconds without progress after which all ranks stop.")
]
Seed = Annotated[int, typer.Option(help="Of the weights and the example data.")]


def usage_checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse`, whose complaint about the text is one about usage, and names the option."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except AutopartError as error:
            raise typer.BadParameter(str(error)) from None

    return parsed


def parse_replicas(text: str) -> int:
    """Read a number of replicas."""
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"'{text}' is no number of replicas; write auto, 4 or per-stage")
    return int(text)


def parse_counts(text: str | None) -> tuple[int, ...]:
    """Read `1,2,4`; nothing where nothing was typed."""
    parts = text.split(",") if text is not None else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of counts; write them as 1,2,4")
    return tuple(map(int, parts))


def parse_pins(texts: Sequence[str]) -> dict[str, int]:
    """Read `LAYER=STAGE` pins."""
    pins: dict[str, int] = {}
    for text in texts:
        layer, _, stage = text.rpartition("=")
        if not layer or not stage.isdecimal():
            raise typer.BadParameter(f"'{text}' is no pin; write a layer and a stage: head=3")
        if pins.setdefault(layer, int(stage)) != int(stage):
            raise typer.BadParameter(f"layer '{layer}' is pinned to {pins[layer]} and to {stage}")
    return pins
