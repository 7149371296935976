"""`autopart run`: train a few steps of a plan on real ranks."""

from contextlib import nullcontext
from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, progress_bar
from autopart.cli.options import AsJson, ModelName, PlanFile, Seed, Timeout
from autopart.cli.progress_lines import ProgressLines
from autopart.cli.starting import check_started
from autopart.plan import load_plan, num_ranks
from autopart.report.run_table import run_report

EXAMPLE = "autopart run two-ranks.json zoo:gpt2-tiny --local --steps 5 --check"


def command(
    plan: PlanFile,
    model: ModelName,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 5,
    local: Annotated[
        bool, typer.Option("--local", help="Start all ranks on this machine, without torchrun.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare losses and gradients with the plain model."),
    ] = False,
    optimizer: Annotated[
        Literal["adamw", "sgd-momentum", "sgd"] | None,
        typer.Option(help="Default: adamw, and sgd where the run is checked."),
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Default: cuda where each rank has a GPU of its own, else cpu."),
    ] = None,
    timeout: Timeout = 60.0,
    seed: Seed = 0,
    backend: Annotated[
        Literal["autopart", "torch"],
        typer.Option(help="Whose loop runs the orders: ours, or torch's own schedules."),
    ] = "autopart",
    autocast: Annotated[
        bool,
        typer.Option(
            "--autocast", help="Compute under autocast to bfloat16; parameters stay float32."
        ),
    ] = False,
    asynchronous: Annotated[
        Literal["pipedream", "pipedream-2bw"] | None,
        typer.Option(
            help="Train without flushes, with older weights: PipeDream updates after every "
            "microbatch, 2BW after each batch."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan with MODEL on real ranks, and time it.

    Under torchrun this process is one of its ranks; --local starts them all on this machine.
    Prints measured beside predicted times. Exits with 1 where a rank dies, or where --check finds
    the pipeline and the plain model to differ.
    """
    asked = load_plan(plan)
    check_started("run", plan, num_ranks(asked), model, local=local)
    from autopart.runtime.execution.launch import run_plan  # and with it torch: seconds

    with progress_bar("starting the ranks") if local else nullcontext(ProgressLines()) as progress:
        result = run_plan(
            asked,
            model,
            steps=steps,
            check=check,
            optimizer=optimizer,
            lr=lr,
            timeout=timeout,
            device=device,
            seed=seed,
            backend=backend,
            autocast=autocast,
            asynchronous=asynchronous,
            report=progress,
        )
    if result is not None:
        print_result(result, run_report(result), as_json=as_json)
