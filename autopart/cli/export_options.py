"""The options for `autopart export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

TargetName = Literal[
    "torch",
    "torchtitan",
    "megatron",
    "deepspeed",
    "automodel",
    "accelerate",
    "primus",
    "vllm",
    "device-map",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetOptions:
    """The framework, its names for the layers, and the folder for its files."""

    target: Annotated[
        TargetName | None, typer.Option("--to", help="The framework to write for.")
    ] = None
    target_version: Annotated[
        str | None, typer.Option(help="The framework's version; --list shows the known ones.")
    ] = None
    renamings: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LAYER=UNIT",
            help="Rename layers, such as transformer.h.{i}=layers.{i}.",
        ),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(
            help="The plan's profile, which names the classes of layers that --to accelerate wraps."
        ),
    ] = None
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the files.")
    ] = Path("exported")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """The comparison of the written files with the plain model."""

    check: Annotated[
        bool,
        typer.Option("--check", help="Compare one step with the plain model; --to torch only."),
    ] = False
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model for --check, where it is not the plan's own."),
    ] = None
