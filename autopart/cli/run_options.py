"""The options for `autopart run` and `autopart validate`, which both train a plan on ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.shared_options import MOST_THREADS

Local = Annotated[
    bool, typer.Option("--local", help="Start all ranks on this machine, without torchrun.")
]
Device = Annotated[
    Literal["cpu", "cuda"] | None,
    typer.Option(
        help="Device of the ranks; default: cuda where each rank has its own GPU, else cpu."
    ),
]
OptimizerName = Literal["adamw", "sgd-momentum", "sgd"]
"""The optimizers that ranks can run."""
AsynchronousName = Literal[
    "pipedream", "pipedream-2bw", "pipemare", "spectrain", "xpipe", "wpipe", "pipeoptim", "avgpipe",
    "hetpipe",
]  # fmt: skip
"""The asynchronous schedules: a run says why it refuses those that are only priced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankOptions:
    """The patience and the random numbers of the ranks, for both commands."""

    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds without progress until all ranks stop.")
    ] = 60.0
    seed: Annotated[int, typer.Option(help="Seed for the weights and the example data.")] = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOptions:
    """`run`: the steps, their optimizer and their device."""

    steps: Annotated[int, typer.Option(min=1, help="Number of optimizer steps.")] = 5
    local: Local = False
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare losses and gradients with the plain model."),
    ] = False
    optimizer: Annotated[
        OptimizerName | None,
        typer.Option(help="The optimizer; default: adamw, or sgd under --check."),
    ] = None
    lr: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None
    clip_norm: Annotated[
        float | None,
        typer.Option(
            metavar="NORM",
            help="Clip gradients: their norm over the whole model is at most this before each update.",
        ),
    ] = None
    device: Device = None
    save: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Save weights and optimizer state in a new folder."),
    ] = None
    load: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Continue from a folder of --save, under any plan for the model."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """`run`: the loop that runs the orders, and its precision."""

    backend: Annotated[
        Literal["autopart", "torch"],
        typer.Option(help="Run the orders with our own loop, or with torch's schedules."),
    ] = "autopart"
    autocast: Annotated[
        bool,
        typer.Option(
            "--autocast", help="Compute under autocast to bfloat16; parameters stay float32."
        ),
    ] = False
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Run each stage's graph under torch's compiler."),
    ] = False
    sync: Annotated[
        Literal["end", "overlap"] | None,
        typer.Option(
            help="Sum gradients after all actions, or in buckets beside the last backward. Default: "
            "as the plan was solved."
        ),
    ] = None
    asynchronous: Annotated[
        AsynchronousName | None,
        typer.Option(
            help="Train without flushes, on older weights (pipedream, pipedream-2bw, wpipe) or predicted "
            "ones (spectrain, xpipe, pipeoptim). pipedream-2bw, xpipe and wpipe update after each batch, "
            "the others after each microbatch. pipemare, avgpipe and hetpipe are only priced."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonOptions:
    """`validate`: the measured steps, the ranks to start, and the comparison."""

    steps: Annotated[
        int, typer.Option(min=1, help="Number of steps; the first one does not count.")
    ] = 10
    local: Local = False
    one_device: Annotated[
        bool,
        typer.Option(
            "--one-device",
            help="Run each rank alone on one device, with fake neighbours.",
        ),
    ] = False
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="PERCENT",
            help="Exit with 1 where the step (with --one-device: an action) is off by more than this, "
            "or memory exceeds its prediction by more.",
        ),
    ] = None
    trace_file: Annotated[
        Path | None,
        typer.Option(
            "--trace", metavar="FILE", help="Write both timelines as a Chrome trace, for Perfetto."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeOptions:
    """`validate`: the optimizer, the device and its threads."""

    optimizer: Annotated[
        OptimizerName | None,
        typer.Option(
            help="The optimizer; default: the one that the plan's memory is predicted for."
        ),
    ] = None
    device: Device = None
    threads: Annotated[
        int,
        typer.Option(min=1, max=MOST_THREADS, help="Compute threads under --one-device, on a CPU."),
    ] = 1
